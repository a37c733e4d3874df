"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const wall = document.getElementById("wall");
if (wall) {
  const pairs = all(".pair", wall);
  const category = document.getElementById("category");
  const order = document.getElementById("order");
  const shown = document.getElementById("shown");

  const filter = () => {
    let count = 0;
    for (const pair of pairs) {
      pair.hidden = category.value !== "" && pair.dataset.category !== category.value;
      count += pair.hidden ? 0 : 1;
    }
    shown.textContent = `Pairs: ${count}`;
  };
  const sort = () => {
    // The smallest number is the worst pair; what a prompt does not state has none.
    const rank = (pair) => Number(pair.getAttribute(`data-rank-${order.value}`) ?? Infinity);
    wall.append(...pairs.sort((one, other) => (rank(one) < rank(other) ? -1 : rank(one) > rank(other) ? 1 : 0)));
  };
  category.addEventListener("change", filter);
  order.addEventListener("change", sort);
  wall.addEventListener("input", (event) => {
    event.target.closest(".frame").style.setProperty("--cut", `${event.target.value}%`);
  });
  const modes = all("[data-mode]");
  for (const button of modes) {
    button.addEventListener("click", () => {
      for (const other of modes) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      wall.className = `wall ${button.dataset.mode}`;
    });
  }
}

const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
for (const button of all("[data-csv]")) {
  button.addEventListener("click", () => {
    const rows = all("tr", document.getElementById(button.dataset.csv));
    const lines = rows.map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(","));
    const link = document.createElement("a");
    // The mark at the beginning tells spreadsheets that the text is UTF-8.
    link.href = URL.createObjectURL(new Blob(["\ufeff", lines.join("\r\n")], { type: "text/csv" }));
    link.download = `${button.dataset.csv}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const told = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(source.textContent);
      told.textContent = "Copied";
    } catch {
      // The page may not write to the clipboard: select the text, so that one key press copies it.
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      told.textContent = "Selected: press Ctrl+C";
    }
  });
}
