"use strict";
// Draws the figures of a page with plotly.js. What is drawn was made by the report, whole: a figure `{data, layout}`, or
// several under the values of menus. Here a figure is only looked up and gets the common template, and a click on a point opens
// its run's page.
(() => {
  const CONFIG = {
    displaylogo: false,
    showSendToCloud: false, // plotly.js offers to upload charts
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    responsive: true,
    showEditInChartStudio: false,
    toImageButtonOptions: { format: "svg" },
  };
  const INK = "#1c2430", GREY = "#6b7480", WHITE = "#ffffff"; // as in figures/palette.py
  const FONT = {
    family: 'Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif',
    size: 13,
    color: INK,
  };
  const AXIS = {
    title: { standoff: 10, font: { size: 13 } },
    gridcolor: "#e8ebee",
    linecolor: GREY,
    showline: true,
    tickcolor: GREY,
    ticks: "outside",
    zeroline: false,
    automargin: true,
  };
  const WIDE = matchMedia("(min-width: 760px)").matches;
  const COLUMNS = matchMedia("(min-width: 1100px)").matches;
  const LEAST_PX = 360, LEGEND_PX = 17; // of a figure on a phone without its legend; of a line of that
  const even = (_, number) => number % 2 === 0;
  const ERRORS = { thickness: 1.5, width: 0 };
  const TEMPLATE = {
    layout: {
      font: FONT,
      margin: { l: 56, r: 16, t: 28, b: 48 },
      paper_bgcolor: WHITE,
      plot_bgcolor: WHITE,
      hovermode: "closest",
      hoverlabel: { align: "left", bgcolor: WHITE, bordercolor: GREY, font: { ...FONT, size: 12 } },
      legend: WIDE
        ? { y: 1, tracegroupgap: 0, font: { size: 11 } }
        : { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, maxheight: 0.6, tracegroupgap: 0, font: { size: 11 } },
      legend2: { x: 1.22, y: 1, tracegroupgap: 0, font: { size: 11 } },
      xaxis: AXIS,
      yaxis: AXIS,
      annotationdefaults: {
        arrowhead: 0, arrowwidth: 0.7, arrowcolor: GREY, standoff: 5, bgcolor: "#ffffffb0", borderpad: 0, font: { size: 11 },
      },
      shapedefaults: { type: "line", layer: "below", label: { textposition: "end", xanchor: "right", yanchor: "bottom", padding: 0, font: { size: 11 } } },
    },
    data: { scatter: [{ error_x: ERRORS, error_y: ERRORS }] },
  };

  function withHover(figure, hover) {
    for (const trace of figure.data) {
      if (!COLUMNS) delete trace.legend;
      if (trace.customdata && hover) {
        trace.hovertext = trace.customdata.map((run) => hover[run]);
        trace.hoverinfo = "text";
      }
    }
    return figure;
  }

  /** For a phone: fewer labels and ticks, and a legend below that takes no space of the axes. */
  function narrowed({ data, layout, narrow }, place) {
    const { tickvals: at, ticktext: text, ...axis } = layout.xaxis;
    const fewer = at?.length > 5 ? { tickvals: at.filter(even), ticktext: text.filter(even) } : { tickvals: at, ticktext: text };
    const entries = layout.showlegend ? data.filter((one) => one.showlegend !== false).length : 0;
    place.style.height = `${LEAST_PX + LEGEND_PX * Math.ceil(entries / 2)}px`;
    return { ...layout, annotations: narrow, xaxis: { ...axis, ...fewer } };
  }

  function show(place, content, figure) {
    const { data, layout } = withHover(figure, content.hover);
    const shown = WIDE || !figure.narrow ? layout : narrowed(figure, place);
    Plotly.react(place, data, { template: TEMPLATE, ...shown }, CONFIG);
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
