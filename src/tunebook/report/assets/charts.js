// The charts, drawn by Chart.js in the colours of the page; drawn again where the colours change, and light for print.
const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const draw = (canvas, spec) => {
  drawn.get(canvas)?.chart.destroy();
  const config = kinds[spec.kind](spec, canvas.parentElement.clientWidth);
  canvas.parentElement.style.height = `${config.height}px`;
  drawn.set(canvas, { spec, chart: new Chart(canvas, config) });
};

const redraw = () => {
  for (const [canvas, { spec, chart }] of drawn) {
    if (canvas.isConnected) draw(canvas, spec);
    else {
      chart.destroy();
      drawn.delete(canvas);
    }
  }
};

const letters = (width) => Math.max(14, Math.floor(width / 18));

const axis = (title, more = {}) => ({
  title: { display: Boolean(title), text: title, color: colour("muted") },
  grid: { color: colour("line") },
  border: { color: colour("line") },
  ...more,
  ticks: { color: colour("ink"), maxRotation: 0, includeBounds: false, ...more.ticks },
});

const names = (labels, width) => ({
  grid: { display: false },
  border: { color: colour("line") },
  ticks: { color: colour("ink"), autoSkip: false, callback: (_, i) => shorten(labels[i] ?? "", letters(width)) },
});

const options = (scales, tooltip, legend = false) => ({
  animation: false,
  responsive: true,
  maintainAspectRatio: false,
  plugins: {
    legend: { display: legend, position: "bottom", labels: { color: colour("ink"), boxWidth: 12 } },
    tooltip: { callbacks: tooltip },
  },
  scales,
});

// A logarithmic axis with few enough numbers to be read: 1, 2 and 5, or powers of ten alone over a long range.
const logarithmic = (format, range) => ({
  type: "logarithmic",
  afterBuildTicks: (scale) => {
    const leads = range > 300 ? [1] : [1, 2, 5];
    scale.ticks = scale.ticks.filter(({ value }) => leads.includes(Number(value.toExponential(6).split("e")[0])));
  },
  ticks: { callback: (value) => format(value), autoSkip: false },
});

// A whisker from low to high over every bar or point.
const whiskers = (intervals, axisName) => ({
  id: "whiskers",
  afterDatasetsDraw(chart) {
    const { ctx, scales } = chart;
    ctx.save();
    ctx.strokeStyle = colour("ink");
    ctx.lineWidth = 1.5;
    chart.getDatasetMeta(0).data.forEach((point, i) => {
      const [low, high] = intervals[i].map((value) => scales[axisName].getPixelForValue(value));
      const [across, from, to] = axisName === "x" ? [point.y, low, high] : [point.x, low, high];
      const line = axisName === "x" ? (a, b, c, d) => [a, b, c, d] : (a, b, c, d) => [b, a, d, c];
      for (const [x1, y1, x2, y2] of [
        line(from, across, to, across),
        line(from, across - 4, from, across + 4),
        line(to, across - 4, to, across + 4),
      ]) {
        ctx.beginPath();
        ctx.moveTo(x1, y1);
        ctx.lineTo(x2, y2);
        ctx.stroke();
      }
    });
    ctx.restore();
  },
});

const kinds = {
  // Bars from 1 to a ratio, with its interval: [name, value, low, high, whether something is shown].
  ratios({ bars, axis: title }, width) {
    const low = Math.min(1, ...bars.map((bar) => bar[2]));
    const high = Math.max(1, ...bars.map((bar) => bar[3]));
    const wide = high / low > 12;
    const shades = bars.map(([, value, , , shown]) => colour(shown ? (value >= 1 ? "accent" : "bad") : "plain"));
    const all = bars.map((bar) => bar[0]);
    const room = (high - low || 0.1) * 0.05;
    return {
      type: "bar",
      height: 70 + 28 * bars.length,
      data: { labels: all, datasets: [{ data: bars.map((bar) => [1, bar[1]]), backgroundColor: shades, maxBarThickness: 16 }] },
      options: {
        ...options(
          {
            x: axis(title, {
              ...(wide ? logarithmic(ratio, high / low) : { ticks: { callback: (value) => ratio(value), maxTicksLimit: 8 } }),
              min: wide ? low / 1.1 : Math.max(0, low - room),
              max: wide ? high * 1.1 : high + room,
            }),
            y: names(telling(all), width),
          },
          { label: ({ dataIndex: i }) => between(bars[i][1], bars[i][2], bars[i][3]) },
        ),
        indexAxis: "y",
      },
      plugins: [whiskers(bars.map((bar) => [bar[2], bar[3]]), "x")],
    };
  },

  // Stacked amounts: [name, [amount of each part]].
  amounts({ bars, parts, axis: title, unit }, width) {
    const format = unit === "B" ? bytes : duration;
    const shades = ["accent", "second"];
    return {
      type: "bar",
      height: (parts.length > 1 ? 100 : 70) + 28 * bars.length,
      data: {
        labels: bars.map((bar) => bar[0]),
        datasets: parts.map((label, part) => ({
          label,
          data: bars.map((bar) => bar[1][part]),
          backgroundColor: colour(shades[part % 2]),
          maxBarThickness: 18,
        })),
      },
      options: {
        ...options(
          {
            x: axis(title, { stacked: true, beginAtZero: true, ticks: { callback: (v) => format(v), maxTicksLimit: 7 } }),
            y: { ...names(bars.map((bar) => bar[0]), width), stacked: true },
          },
          { label: ({ dataset, raw }) => `${dataset.label}: ${format(raw)}` },
          parts.length > 1,
        ),
        indexAxis: "y",
      },
    };
  },

  // Predicted against measured: [name, predicted, measured, low, high, whether the gain is missing], in ms a step.
  effects({ points }) {
    const ends = points.flatMap(([, predicted, ...rest]) => [predicted, ...rest.slice(0, 3)]);
    const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const room = ((most - least) || 1) * 0.04;
    const range = { min: least - room, max: most + room };
    return {
      type: "scatter",
      height: 340,
      data: {
        datasets: [
          {
            data: points.map(([, x, y]) => ({ x, y })),
            pointBackgroundColor: points.map((point) => colour(point[5] ? "bad" : "accent")),
            pointStyle: points.map((point) => (point[5] ? "triangle" : "circle")),
            pointRadius: points.map((point) => (point[5] ? 6 : 4)),
          },
          {
            type: "line",
            data: [{ x: least, y: least }, { x: most, y: most }],
            borderColor: colour("plain"),
            borderDash: [5, 4],
            borderWidth: 1,
            pointRadius: 0,
            pointHitRadius: 0,
          },
        ],
      },
      options: options(
        { x: axis("predicted saving, ms a step", range), y: axis("measured saving, ms a step", range) },
        {
          label: ({ dataIndex: i }) => [
            points[i][0],
            `predicted ${points[i][1].toPrecision(3)} ms, measured ${points[i].slice(2, 5).map((v) => v.toPrecision(3)).join(", ")}`,
          ],
        },
      ),
      plugins: [whiskers(points.map((point) => [point[3], point[4]]), "y")],
    };
  },

  // Every sample of every tactic, a line a tactic: {name, median, raced, before, mark}; {name, reason} for a rejected one.
  samples({ lines }, width) {
    const times = lines.flatMap((line) => [...(line.raced ?? []), ...(line.before ?? [])]);
    const [least, most] = [Math.min(...times), Math.max(...times)];
    const wide = most / least > 6;
    const shade = (line) => colour({ winner: "accent", tied: "tie" }[line.mark] ?? "plain");
    const labels = telling(lines.map((line) => line.name));
    const spread = (i) => (((i * 0.618) % 1) - 0.5) * 0.5; // beside each other, not on top
    const points = (key) => lines.flatMap((line, y) => (line[key] ?? []).map((x, i) => ({ x, y: y + spread(i) })));
    const shades = (key) => lines.flatMap((line) => (line[key] ?? []).map(() => shade(line)));
    const sign = (line) => ({ winner: "★ ", tied: "≈ ", "did not race": "○ " })[line.mark] ?? (line.reason ? "✕ " : "");
    return {
      type: "scatter",
      height: 80 + 24 * lines.length,
      data: {
        datasets: [
          { label: "race", data: points("raced"), pointBackgroundColor: shades("raced").map((c) => `${c}b0`), pointBorderWidth: 0, pointRadius: 3 },
          { label: "before the race", data: points("before"), pointBackgroundColor: "transparent", pointBorderColor: shades("before"), pointRadius: 3 },
        ],
      },
      options: options(
        {
          x: axis("a call", wide ? logarithmic(duration, most / least) : { ticks: { callback: (v) => duration(v), maxTicksLimit: width < 500 ? 4 : 8 } }),
          y: {
            ...names([], width),
            min: -0.7,
            max: lines.length - 0.3,
            reverse: true,
            afterBuildTicks: (scale) => { scale.ticks = lines.map((_, value) => ({ value })); },
            ticks: {
              color: colour("ink"),
              autoSkip: false,
              callback: (value) => sign(lines[value]) + shorten(labels[value], letters(width)),
            },
          },
        },
        { label: ({ raw }) => [lines[Math.round(raw.y)].name, duration(raw.x)] },
      ),
      plugins: [medians(lines)],
    };
  },
};

// A line at each median, and the reason where a tactic was rejected.
const medians = (lines) => ({
  id: "medians",
  afterDatasetsDraw({ ctx, scales: { x, y }, chartArea }) {
    ctx.save();
    ctx.font = "12px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    lines.forEach((line, i) => {
      const middle = y.getPixelForValue(i);
      if (line.reason) {
        ctx.fillStyle = colour("bad");
        ctx.fillText(`rejected: ${line.reason}`, chartArea.left + 6, middle);
        return;
      }
      ctx.strokeStyle = colour("ink");
      ctx.lineWidth = 2;
      ctx.beginPath();
      ctx.moveTo(x.getPixelForValue(line.median), middle - 9);
      ctx.lineTo(x.getPixelForValue(line.median), middle + 9);
      ctx.stroke();
    });
    ctx.restore();
  },
});
