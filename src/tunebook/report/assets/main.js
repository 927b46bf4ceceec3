// Brings the page to life; without it the tables are all there.
const data = JSON.parse(document.getElementById("data").textContent);

for (const canvas of document.querySelectorAll("canvas[data-chart]")) draw(canvas, data.charts[Number(canvas.dataset.chart)]);
for (const table of document.querySelectorAll("table[data-sortable]")) sortable(table);
for (const body of document.querySelectorAll("tbody[data-detail]")) openable(body, data);
for (const form of document.querySelectorAll("form[data-filters]")) filterable(form);

// A cell of a heat map leads to its problem, which is opened, whatever the filters say.
const follow = () => {
  const body = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (body?.tagName !== "TBODY") return;
  if (body.hidden) document.querySelector(`form[data-filters="${body.parentElement.id}"]`).reset();
  setTimeout(() => {
    if (body.dataset.detail !== undefined) toggle(body, data, true);
    body.scrollIntoView();
    body.querySelector("button.open")?.focus({ preventScroll: true });
  });
};
addEventListener("hashchange", follow);
follow();

const printing = (now) => {
  document.documentElement.classList.toggle("printing", now);
  redraw();
};
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));
matchMedia("print").addEventListener("change", ({ matches }) => printing(matches));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
