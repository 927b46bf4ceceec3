// What is known of one problem, made when it is opened: a chart of every tactic's samples, and tables of the same.
const MARKS = ["slower", "winner", "tied", "did not race"];
const MOST_LINES = 48;

const tableOf = (caption, columns, rows) => {
  const cell = (name, value, right) => element(name, right ? { class: "n" } : {}, value);
  const head = element("tr", {}, ...columns.map(([name, right]) => {
    const header = cell("th", name, right);
    header.scope = "col";
    return header;
  }));
  const body = rows.map((row) => element("tr", {}, ...row.map((value, i) => {
    if (i > 0) return cell("td", value, columns[i][1]);
    return element("th", { scope: "row", class: "key" }, ...breakable(value));
  })));
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table);
};

const tactics = (entry, { texts, step }) =>
  entry.t.map(([name, mark, median, inner, size, error, raced, before, racedSteps, beforeSteps]) => {
    const times = (steps) => steps.map((count) => median * (1 + count * step));
    const shown = { raced: times(racedSteps), before: times(beforeSteps) };
    return { name: texts[name], mark: MARKS[mark], median, inner, size, error, counts: [raced, before], ...shown };
  });

const inside = (entry, data) => {
  const { texts } = data;
  const timed = tactics(entry, data);
  const rejected = entry.r.map(([name, reason, detail]) => ({ name: texts[name], reason: texts[reason], detail: texts[detail] }));
  const served = entry.s.map((name) => texts[name]);
  const parts = [];
  let chart = null;
  if (timed.length) {
    chart = { kind: "samples", lines: [...timed, ...rejected].slice(0, MOST_LINES) };
  } else if (entry.f.length > 1) {
    const bars = entry.f.map(([name, value, low, high]) => [texts[name], value, low, high, false]);
    chart = { kind: "ratios", bars, axis: "times as long as the winner" };
  }
  if (served.length) parts.push(element("p", {}, "The plan serves ", element("code", {}, served.join(", ")), "."));
  let canvas = null;
  if (chart !== null) {
    const what = timed.length ? "Samples of every tactic" : "The best tactics against the winner";
    canvas = element("canvas", { role: "img", "aria-label": `${what}. The tables that follow have their figures.` });
    parts.push(element("div", { class: "chart" }, canvas));
    if (timed.length) parts.push(element("p", { class: "sub" }, "★ winner · ≈ tied with it · ○ did not race · ✕ rejected. A dot is a sample, a ring a call before the race, a line the median. Names are without what all tactics of a runner share."));
  }
  if (timed.length) {
    const columns = [["tactic"], ["is"], ["median", 1], ["samples", 1], ["calls each", 1], ["error", 1], ["weights", 1]];
    parts.push(tableOf("Tactics that were timed", columns, timed.map((one) => [
      one.name, one.mark, duration(one.median), one.counts[0] || `${one.counts[1]} before`, one.inner,
      one.error === null ? "–" : Number(one.error.toPrecision(2)), one.size ? bytes(one.size) : "–",
    ])));
  }
  if (rejected.length) {
    const rows = rejected.map(({ name, reason, detail }) => [name, reason, detail]);
    parts.push(tableOf("Rejected tactics", [["tactic"], ["reason"], ["detail"]], rows));
  }
  const columns = [["tactic"], ["time over the winner's", 1], ["weights", 1], ["layout"]];
  parts.push(tableOf("Frontier: the best tactic of each runner and layout", columns, entry.f.map(
    ([name, value, low, high, size, layout]) => [texts[name], between(value, low, high), size ? bytes(size) : "–", texts[layout] || "the model's own"],
  )));
  return { parts, canvas, chart };
};

const openable = (body, data) => {
  const header = body.rows[0].cells[0];
  const button = element("button", { type: "button", class: "open", "aria-expanded": "false" }, ...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => toggle(body, data));
};

const toggle = (body, data, open = body.rows.length < 2) => {
  if (open === body.rows.length > 1) return;
  body.querySelector("button.open").setAttribute("aria-expanded", String(open));
  if (!open) {
    const canvas = body.rows[1].querySelector("canvas");
    drawn.get(canvas)?.chart.destroy();
    drawn.delete(canvas);
    body.rows[1].remove();
    return;
  }
  const { parts, canvas, chart } = inside(data.problems[Number(body.dataset.detail)], data);
  const cell = element("td", { colspan: String(body.rows[0].cells.length) }, element("div", { class: "inside" }, ...parts));
  body.append(element("tr", { class: "detail" }, cell));
  if (chart !== null) draw(canvas, chart);
};
