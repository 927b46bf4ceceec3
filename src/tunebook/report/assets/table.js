// Tables that sort by their headers, and forms that filter them. A row, with what hangs on it, is a tbody.
const valueOf = (body, column) => {
  const cell = body.rows[0].cells[column];
  return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
};

const order = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

const sortable = (table) => {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = element("button", { type: "button" }, ...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const figures = header.classList.contains("n");
      const now = header.getAttribute("aria-sort");
      const ascending = now === "none" ? !figures : now === "descending";
      const bodies = [...table.tBodies].map((body) => [valueOf(body, column), body]);
      bodies.sort(([a], [b]) => (ascending ? order(a, b) : order(b, a)));
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      table.append(...bodies.map(([, body]) => body));
    });
  });
};

const filterable = (form) => {
  const table = document.getElementById(form.dataset.filters);
  const bodies = [...table.tBodies].map((body) => [body, body.rows[0].textContent.toLowerCase()]);
  const fields = [...form.querySelectorAll("[data-filter]")];
  const output = form.querySelector("output");
  const apply = () => {
    let shown = 0;
    for (const [body, text] of bodies) {
      const fits = fields.every(({ value, dataset: { filter } }) => {
        const wanted = value.trim();
        return !wanted || (filter === "text" ? text.includes(wanted.toLowerCase()) : body.dataset[filter] === wanted);
      });
      body.hidden = !fits;
      shown += fits;
    }
    output.textContent = `${shown} of ${bodies.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
};
