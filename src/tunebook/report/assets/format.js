// Figures with their units, as the tables have them.
const duration = (seconds) => {
  if (seconds === 0) return "0";
  for (const [limit, factor, unit] of [[1e-6, 1e9, "ns"], [1e-3, 1e6, "µs"], [1, 1e3, "ms"]]) {
    if (seconds < limit) return `${Number((seconds * factor).toPrecision(3))} ${unit}`;
  }
  return `${Number(seconds.toPrecision(3))} s`;
};

const bytes = (count) => {
  for (const [limit, factor, unit] of [[1e3, 1, "B"], [1e6, 1e3, "kB"], [1e9, 1e6, "MB"]]) {
    if (count < limit) return `${Number((count / factor).toPrecision(3))} ${unit}`;
  }
  return `${(count / 1e9).toFixed(2)} GB`;
};

const ratio = (value) => `${Number(value.toPrecision(3))}×`;
const between = (value, low, high) => `${value.toFixed(2)}× [${low.toFixed(2)},\u00a0${high.toFixed(2)}]`;

// The middle goes: a key ends in the bucket's size.
const shorten = (text, most) => {
  if (text.length <= most) return text;
  const tail = Math.floor(most / 2.5);
  return `${text.slice(0, most - tail - 1)}…${text.slice(text.length - tail)}`;
};

// Names of tactics, each without the parameters that all tactics of its runner share.
const telling = (all) => {
  const parsed = all.map((name) => /^([^[|]+)\[(.*)\]$/.exec(name));
  const groups = Map.groupBy(parsed.filter(Boolean), ([, runner]) => runner);
  return all.map((name, i) => {
    if (!parsed[i]) return name;
    const [, runner, parameters] = parsed[i];
    const group = groups.get(runner).map(([, , others]) => others.split(","));
    const own = parameters.split(",").filter((one) => !group.every((others) => others.includes(one)));
    return group.length < 2 ? name : own.length ? `${runner}[${own.join(",")}]` : runner;
  });
};

// A name in pieces, between which a line may be broken.
const breakable = (name) => name.split(/(?<=[|,[])/).flatMap((piece) => [piece, document.createElement("wbr")]);

// An element with attributes and children. Text is only ever set as text.
const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
};
