"use strict";
// Makes every table of class `sortable` sort and filter; without scripts it is a table all the same.
// One whose lines lead to runs can be filtered, if it is not short.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const filtered = table.tBodies[0].rows.length > 5 && table.querySelector("tbody a") !== null;
    new DataTable(table, {
      autoWidth: false,
      info: false,
      language: { search: "Filter" },
      layout: { topStart: filtered ? "search" : null, topEnd: null, bottomStart: null, bottomEnd: null },
      order: [],
      orderDescReverse: false,
      paging: false,
    });
  }
});
