// Two layers of one test scene under a swipe handle. OpenSeadragon zooms and draws; what is chosen stands in the form
// alone, and `arrange` makes the stage agree with it. Opened from disk no pixel can be read, and none is.
"use strict";

const SIDES = ["left", "right"];
const scene = JSON.parse(document.getElementById("scene").textContent);
const form = document.getElementById("controls");
const stage = document.getElementById("stage");
const swipe = document.getElementById("swipe");
const choices = new Map([
  ["label", { name: "label", labels: scene.label, inputs: [] }],
  ["image", { name: "image", inputs: [] }],
  ...scene.methods.map((method) => [method.name, method]),
]);
const chosen = (side) => choices.get(form[side].value);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

const viewer = OpenSeadragon({
  element: document.getElementById("viewer"),
  drawer: "canvas", // WebGL refuses images from disk
  showNavigationControl: false,
  gestureSettingsMouse: { clickToZoom: false },
  animationTime: calm ? 0 : 0.4,
  maxZoomPixelRatio: 40,
  minZoomImageRatio: 0.7,
  visibilityRatio: 0.3,
});
const { viewport, world } = viewer;

// Images stay in the world once they were shown; which of them are seen is a matter of opacity.
const items = [];

function tileSource({ path, ending, width, height, levels, tile_px }) {
  const file = levels > 1 ? (level, x, y) => `${path}/${level}/${x}_${y}.${ending}` : () => `${path}.${ending}`;
  return { width, height, tileSize: tile_px, minLevel: 0, maxLevel: levels - 1, getTileUrl: file };
}

function show(side, layer, opacity, index) {
  let item = items.find((one) => one.side === side && one.layer === layer);
  if (!item) {
    item = { side, layer, opacity, tiled: null };
    items.push(item);
    viewer.addTiledImage({
      tileSource: tileSource(layer),
      index,
      opacity,
      success: (event) => {
        item.tiled = event.item;
        item.tiled.setOpacity(item.opacity);
        follow();
      },
    });
  }
  item.opacity = opacity;
}

/** The stage as the form has it. */
function arrange() {
  for (const item of items) item.opacity = 0;
  for (const side of SIDES) {
    const { name, labels, errors, miou, iou, inputs } = chosen(side);
    const shrunk = form.shrunk.checked && inputs.find((input) => input.given);
    const layer = (form.show.value === "errors" && errors) || labels;
    if (!shrunk) show(side, scene.image, 1, 0);
    if (layer) show(side, layer, form.opacity.valueAsNumber / 100);
    draw(side, shrunk ? shrunk.given : null, form.patches.checked ? inputs : []);
    stage.querySelector(`.tag.${side}`).textContent = name;
    document.getElementById(`${side}-miou`).value = miou === undefined ? "" : `mIoU ${percent(miou)} %`;
    document.getElementById(`${side}-given`).textContent = inputs.length
      ? `Its network is given ${inputs.map((input) => input.what).join(", and ")}.`
      : "";
    document.querySelectorAll(`td[data-side="${side}"]`).forEach((cell, number) => {
      cell.textContent = iou ? percent(iou[number]) : "–";
    });
  }
  for (const { tiled, opacity } of items) tiled?.setOpacity(opacity);
  follow();
}

const percent = (share) => (share === null || share === undefined ? "–" : (100 * share).toFixed(1));

/** What a side's network is given: the shrunk image below its labels, and its patches above them. */
function draw(side, given, inputs) {
  const image = given
    ? `<image href="${given}" width="${scene.width}" height="${scene.height}" preserveAspectRatio="none"/>`
    : "";
  stage.querySelector(`.under.${side} g`).innerHTML = image;
  let grid = 0; // contexts count with the grid before them
  stage.querySelector(`.over.${side} g`).innerHTML = inputs
    .filter(({ boxes, given }) => boxes.length > 1 || !given)
    .map(({ boxes, context }) => {
      if (!context) grid += 1;
      const rects = boxes.map(([top, left, height, width], index) =>
        `<rect x="${left}" y="${top}" width="${width}" height="${height}" data-patch="${grid}-${index}" class="${context ? "context" : "patch"}"/>`);
      const outline = boxes.map(([top, left, height, width]) => `M${left} ${top}h${width}v${height}h${-width}z`).join("");
      return rects.join("") + (context ? "" : `<path class="halo" d="${outline}"/><path d="${outline}"/>`);
    })
    .join("");
}

/** Everything that hangs on zoom, place and handle. */
function follow() {
  const share = swipe.valueAsNumber;
  stage.style.setProperty("--swipe", share);
  const origin = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const scale = (viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true).x - origin.x) / scene.width;
  const place = `translate(${origin.x} ${origin.y}) scale(${scale})`;
  for (const group of stage.querySelectorAll("svg g")) group.setAttribute("transform", place);
  const edge = (share * stage.clientWidth - origin.x) / scale; // the handle, in pixels of the image
  const cut = Math.min(Math.max(edge, 0), scene.width);
  // Only what is new is set: setting draws, and drawing comes back here.
  for (const item of items.filter(({ tiled, opacity, cut: last }) => tiled && opacity && last !== cut)) {
    const [from, to] = item.side === "left" ? [0, cut] : [cut, scene.width];
    item.tiled.setClip(new OpenSeadragon.Rect(from, 0, to - from, scene.height));
    item.cut = cut;
  }
}

/** Position and zoom, and the patches under the pointer with what else is given of them. */
function point(event) {
  const { left, top } = stage.getBoundingClientRect();
  const at = viewport.pointFromPixel(new OpenSeadragon.Point(event.clientX - left, event.clientY - top), true);
  const [x, y] = [Math.floor(at.x * scene.width), Math.floor(at.y * scene.width)];
  const zoom = (viewport.getZoom(true) * stage.clientWidth) / scene.width;
  const inside = x >= 0 && y >= 0 && x < scene.width && y < scene.height;
  document.getElementById("place").value = inside ? `column ${x}, row ${y} · ${zoom.toFixed(2)} ×` : "";
  for (const side of SIDES) {
    const rects = [...stage.querySelectorAll(`.over.${side} rect`)];
    const holds = ({ x: from, y: above, width, height }) =>
      x >= from.baseVal.value && y >= above.baseVal.value &&
      x < from.baseVal.value + width.baseVal.value && y < above.baseVal.value + height.baseVal.value;
    const seen = new Set(rects.filter((rect) => rect.matches(".patch") && holds(rect)).map((rect) => rect.dataset.patch));
    for (const rect of rects) rect.classList.toggle("seen", seen.has(rect.dataset.patch));
  }
}

/** Pixels that are larger than the screen's are squares; only smaller ones are mixed. */
function sharpen({ context }) {
  context.imageSmoothingEnabled = viewport.getZoom(true) * stage.clientWidth < scene.width;
}

const zooms = {
  in: () => viewport.zoomBy(1.5),
  out: () => viewport.zoomBy(1 / 1.5),
  pixels: () => viewport.zoomTo(scene.width / stage.clientWidth),
  whole: () => viewport.goHome(),
};

function remember() {
  const { left, right, show } = form;
  history.replaceState(null, "", `#${new URLSearchParams({ left: left.value, right: right.value, show: show.value })}`);
}

/** The choice that the address names, else the label beside the best run. */
function recall() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const first = { left: "label", right: scene.methods[0]?.name ?? "image" };
  for (const side of SIDES) form[side].value = choices.has(wanted.get(side)) ? wanted.get(side) : first[side];
  if (["labels", "errors"].includes(wanted.get("show"))) form.show.value = wanted.get("show");
  arrange();
}

form.addEventListener("input", () => (arrange(), remember()));
form.addEventListener("submit", (event) => event.preventDefault());
for (const button of form.querySelectorAll("[data-zoom]"))
  button.addEventListener("click", () => (zooms[button.dataset.zoom](), viewport.applyConstraints()));
swipe.addEventListener("input", follow);
stage.addEventListener("pointermove", point, true);
addEventListener("hashchange", recall);
for (const event of ["update-viewport", "resize"]) viewer.addHandler(event, follow);
viewer.addHandler("tile-drawing", sharpen);
viewer.addHandler("canvas-key", (event) => {
  if ("rRfF".includes(event.originalEvent.key)) event.preventDefaultAction = true; // no turning, no mirroring
});
recall();
