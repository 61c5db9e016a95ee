// Sorts and filters tables, shows the values of figures, and opens the rows that a link leads to.
const LEAST_ROWS = 9; // a shorter table needs no filter

function numberOf(text) {
  const plain = text.replace(/[,~\s]/g, "").replaceAll("−", "-").replace("∞", "Infinity");
  return text === "" || text === "?" ? NaN : parseFloat(plain);
}

function compareCells(first, second) {
  const [a, b] = [numberOf(first), numberOf(second)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
  return first.localeCompare(second, "en", { numeric: true });
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const text = (row) => row.cells[column].textContent.trim();
  const isEmpty = (row) => text(row) === "" || text(row) === "?";
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => isEmpty(a) - isEmpty(b) || (ascending ? 1 : -1) * compareCells(text(a), text(b)));
  table.tBodies[0].append(...rows);
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, column));
    head.replaceChildren(button);
  });
}

function makeFilterable(area) {
  const table = area.querySelector("table");
  const rows = [...table.tBodies[0].rows];
  if (rows.length < LEAST_ROWS) return;
  const bar = document.createElement("div");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  bar.className = "filter";
  input.type = "search";
  input.placeholder = "words, all of which a row holds";
  label.append("Filter ", input);
  bar.append(label, count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => {
      const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every((word) => text.includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
  area.prepend(bar);
}

function showTips() {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  document.querySelectorAll(".tips > *").forEach((shape) => {
    shape.dataset.tip = shape.textContent; // instead of the browser's own tip, which comes late and never on a phone
    shape.replaceChildren();
  });
  document.addEventListener("pointerover", (event) => {
    const text = event.target.dataset?.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    const top = event.clientY + 16 + tip.offsetHeight < innerHeight ? event.clientY + 16 : event.clientY - 16 - tip.offsetHeight;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${top}px`;
  });
}

function openLinked() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

document.querySelectorAll(".rows").forEach(makeFilterable);
document.querySelectorAll(".rows table").forEach(makeSortable);
showTips();
openLinked();
addEventListener("hashchange", openLinked);
document.addEventListener("click", (event) => {
  if (event.target.closest?.("a[href^='#']")) setTimeout(openLinked); // also where the address stays the same
});
