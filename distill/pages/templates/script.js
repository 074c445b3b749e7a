"use strict";
(() => {
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  if (kept()) root.dataset.theme = kept();
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const button = document.createElement("button");
  button.type = "button";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", button.textContent + " theme"); };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* not kept */ }
    name();
  });
  name();
  document.querySelector("header").append(button);

  const value = (row, i) => {
    const cell = row.cells[i], number = Number(cell.dataset.v ?? cell.textContent.replace(/,/g, ""));
    return cell.textContent.trim() === "" || Number.isNaN(number) ? cell.textContent : number;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b, undefined, { numeric: true });
  for (const head of document.querySelectorAll("table.sorts thead th")) {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.textContent = head.textContent;
    head.replaceChildren(sorter);
    sorter.addEventListener("click", () => {
      const table = head.closest("table"), up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows], i = head.cellIndex;
      rows.sort((a, b) => (up ? 1 : -1) * order(value(a, i), value(b, i)));
      table.tBodies[0].append(...rows);
    });
  }

  const tip = document.getElementById("tip");
  for (const title of document.querySelectorAll("svg use > title")) {  // shown at once instead of after a second
    title.parentNode.dataset.text = title.textContent;
    title.remove();
  }
  document.addEventListener("pointermove", event => {
    const marked = event.target.closest && event.target.closest("[data-text]");
    tip.hidden = !marked;
    if (!marked) return;
    tip.textContent = marked.dataset.text;
    tip.style.left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.max(0, event.clientY - tip.offsetHeight - 8) + "px";
  });
})();
