"use strict";
// Sorting: each head of a column becomes a button, so that it is found and pressed by keyboard too.
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
}

function sort(table, head, column) {
  const numeric = head.classList.contains("number");
  // Numbers are looked at from the highest down, names from A on.
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const direction = head.getAttribute("aria-sort") === first ? other : first;
  table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column];
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    if (!numeric) return sign * value(a).textContent.trim().localeCompare(value(b).textContent.trim());
    const [x, y] = [a, b].map((row) => parseFloat(value(row).dataset.order ?? "NaN"));
    // What has no number comes last, whatever the direction.
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return sign * (x - y);
  });
  table.tBodies[0].append(...rows);
}

// Alternatives that were computed beforehand, such as another baseline: one is shown.
for (const box of document.querySelectorAll(".switch")) {
  const options = [...box.querySelectorAll(":scope > [data-option]")];
  if (options.length < 2) continue;
  const [label, select] = ["label", "select"].map((name) => document.createElement(name));
  for (const option of options) select.add(new Option(option.dataset.option));
  select.addEventListener("change", () =>
    options.forEach((option, at) => { option.hidden = at !== select.selectedIndex; }));
  label.append(box.dataset.label, " ", select);
  box.prepend(label);
}

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.meaning)")) details.open = true;
});
