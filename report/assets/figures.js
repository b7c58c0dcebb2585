"use strict";
// Draws the figures of a page with plotly.js. What is drawn was made by the report, whole: a figure `{data, layout}`, or
// several under the values of menus. Here a figure is only looked up, and a click on a point opens its run's page.
(() => {
  const CONFIG = {
    displaylogo: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    responsive: true,
    toImageButtonOptions: { format: "svg" },
  };

  function withHover(figure, hover) {
    for (const trace of figure.data) {
      if (trace.customdata && hover) {
        trace.hovertext = trace.customdata.map((run) => hover[run]);
        trace.hoverinfo = "text";
      }
    }
    return figure;
  }

  function show(place, content, figure) {
    const { data, layout } = withHover(figure, content.hover);
    Plotly.react(place, data, layout, CONFIG);
    place.dataset.drawn = "yes";
  }

  function turnable(place, content) {
    const menus = [...document.querySelectorAll(`select[data-menu="${place.dataset.figure}"]`)];
    const note = document.getElementById(`${place.dataset.figure}-note`);
    const choose = () => {
      const variant = content.variants[menus.map((menu) => menu.value).join("|")];
      place.hidden = !variant;
      note.textContent = variant ? variant.note : "No run has these numbers.";
      if (variant) show(place, content, variant);
    };
    menus.forEach((menu) => menu.addEventListener("change", choose));
    choose();
    place.on("plotly_click", (event) => {
      const page = content.pages[event.points[0].customdata];
      if (page) window.location.href = page;
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const content = JSON.parse(document.getElementById(place.dataset.figure).textContent);
      if (content.variants) turnable(place, content);
      else show(place, content, content);
    }
  });
})();
