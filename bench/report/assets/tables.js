"use strict";
// Makes every table of class `sortable` sort, and its form choose columns and rows; without scripts it is a table all the same.
// What is chosen otherwise than by default stands in the address.
document.addEventListener("DOMContentLoaded", () => {
  const known = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const tables = [...document.querySelectorAll("table.sortable")].map((table) => {
    const form = document.querySelector(`form[data-table="${table.id}"]`);
    const order = (known.get(`${table.id}.sort`) ?? "").split(" ");
    const api = new DataTable(table, {
      autoWidth: false,
      info: false,
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      order: order.length === 2 ? [[Number(order[0]), order[1]]] : [],
      orderDescReverse: false,
      paging: false,
    });
    return { id: table.id, api, controls: [...(form?.elements ?? [])].filter((one) => one.name), form };
  });
  const plain = (one) =>
    one.type === "checkbox" ? one.defaultChecked : one.tagName === "SELECT" ? "" : one.defaultValue;
  const chosen = (one) => (one.type === "checkbox" ? one.checked : one.value);

  function arrange({ api, controls }) {
    for (const one of controls) {
      const column = api.column(one.dataset.column);
      if (one.type === "checkbox") column.visible(one.checked, false);
      else if (one.type === "search") api.search(one.value);
      else if (one.type === "number")
        column.search.fixed("most", one.value ? (text) => parseFloat(text) <= one.valueAsNumber : null);
      else column.search(one.value, { exact: one.value !== "" });
    }
    api.columns.adjust().draw();
  }

  function remember() {
    const found = new URLSearchParams();
    for (const { id, api, controls } of tables) {
      for (const one of controls) if (chosen(one) !== plain(one)) found.set(one.name, chosen(one));
      if (api.order().length) found.set(`${id}.sort`, api.order()[0].slice(0, 2).join(" "));
    }
    if (`${found}` || location.hash.includes("=")) history.replaceState(null, "", `#${found}`);
  }

  for (const table of tables) {
    for (const one of table.controls.filter(({ name }) => known.has(name))) {
      if (one.type === "checkbox") one.checked = known.get(one.name) === "true";
      else one.value = known.get(one.name);
      one.closest("details.table")?.setAttribute("open", "");
    }
    if (table.form) {
      table.form.hidden = false;
      table.form.addEventListener("submit", (event) => event.preventDefault());
      table.form.addEventListener("input", () => (arrange(table), remember()));
      arrange(table);
    }
    table.api.on("order", remember);
  }
});
