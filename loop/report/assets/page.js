"use strict";
// Figures, crystals and sorting. Everything is drawn when it comes into view, or when the page is printed.
const read = box => JSON.parse(box.querySelector("script").textContent);
const FONT = { family: 'Inter, "Helvetica Neue", Arial, sans-serif', size: 12.5, color: "#1f2937" };
const AXIS = { gridcolor: "#e5e7eb", linecolor: "#9ca3af", zeroline: false, automargin: true, title: { standoff: 8, font: { size: 13 } } };
const BASE = { font: FONT, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
  margin: { l: 52, r: 14, t: 16, b: 44 }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
  modebar: { bgcolor: "rgba(255,255,255,0.85)", color: "#94a3b8", activecolor: "#2563eb" },
  hoverlabel: { font: { size: 12 }, align: "left" }, dragmode: "zoom" };
const merge = (base, more) => { // deep; the second wins
  const made = { ...base };
  for (const [key, value] of Object.entries(more)) {
    const nested = value && typeof value === "object" && !Array.isArray(value) && made[key] && typeof made[key] === "object";
    made[key] = nested ? merge(made[key], value) : value;
  }
  return made;
};

function plot(box) {
  const { data, layout } = read(box), name = box.closest("figure").querySelector("h3").textContent;
  const axes = Object.fromEntries(Object.keys(layout).filter(key => /^[xy]axis/.test(key)).map(key => [key, merge(AXIS, layout[key])]));
  const options = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: name.replace(/[^A-Za-z0-9]+/g, "_") } };
  box.textContent = "";
  return Plotly.newPlot(box, data, merge(merge(BASE, layout), axes), options);
}

// One viewer for all crystals, for browsers allow few WebGL contexts: it takes a picture of each, and turns the one that is clicked.
const stage = document.createElement("div");
let viewer = null, open = null, broken = false;

function ready() { // made when the first crystal comes into view; without WebGL the CIFs remain
  if (viewer || broken) return !broken;
  close();
  try { viewer = $3Dmol.createViewer(stage, { backgroundColor: "white", antialias: true }); } catch { viewer = null; }
  broken = !viewer;
  if (broken) document.querySelectorAll(".crystal").forEach(box => { box.hidden = true; });
  return !broken;
}

function build(picture) {
  viewer.clear();
  const at = ([x, y, z]) => ({ x, y, z }), styles = picture.elements, atoms = picture.atoms;
  for (const [symbol, ...place] of atoms)
    viewer.addSphere({ center: at(place), radius: 0.42 * styles[symbol].radius, color: styles[symbol].colour, quality: 3 });
  for (const [i, j] of picture.bonds)
    viewer.addCylinder({ start: at(atoms[i].slice(1)), end: at(atoms[j].slice(1)), radius: 0.07, color: "#a3a3a3", fromCap: 0, toCap: 0 });
  const sum = bits => at([0, 1, 2].map(k => bits.reduce((total, bit, n) => total + bit * picture.cell[n][k], 0)));
  for (const bits of [[0, 0], [0, 1], [1, 0], [1, 1]])
    for (const axis of [0, 1, 2]) {
      const ends = [0, 1].map(end => { const all = [...bits]; all.splice(axis, 0, end); return sum(all); });
      viewer.addCylinder({ start: ends[0], end: ends[1], radius: 0.035, color: "#334155", fromCap: 0, toCap: 0 });
    }
  viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
  viewer.rotate(-90, "x"); viewer.rotate(-25, "y"); viewer.rotate(12, "x");
  viewer.zoomTo(); viewer.zoom(1.05); viewer.render();
}

function photograph(box) {
  if (!ready()) return;
  close();
  build(read(box));
  const image = document.createElement("img");
  image.src = viewer.pngURI();
  image.alt = "crystal structure of " + box.closest("article").querySelector("h4").textContent.trim();
  box.append(image);
}

function close() {
  if (open) { open.querySelector("img")?.style.removeProperty("visibility"); }
  stage.className = "stage";
  document.body.append(stage);
  viewer?.resize();
  open = null;
}

function turn(box) {
  if (!ready() || open === box) return;
  close();
  open = box;
  stage.className = "";
  box.append(stage);
  box.querySelector("img")?.style.setProperty("visibility", "hidden");
  viewer.resize();
  build(read(box));
}

const drawn = new Set();
const draw = box => {
  if (drawn.has(box)) return;
  drawn.add(box);
  box.classList.contains("plot") ? plot(box) : photograph(box);
};

function start() {
  const unfold = () => { const aim = document.getElementById(location.hash.slice(1)); const fold = aim?.closest("details"); if (fold && !fold.open) { fold.open = true; aim.scrollIntoView(); } };
  addEventListener("hashchange", unfold);
  unfold();
  const boxes = document.querySelectorAll(".plot, .crystal");
  const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    seen.unobserve(entry.target); draw(entry.target);
  }), { rootMargin: "300px" });
  boxes.forEach(box => seen.observe(box));
  document.querySelectorAll(".crystal").forEach(box => box.addEventListener("click", () => turn(box)));
  addEventListener("beforeprint", () => { boxes.forEach(draw); document.querySelectorAll(".candidate details").forEach(part => { part.open = true; }); });
}

// A page that was sent without its folder still holds the CIFs of the crystals that it shows.
const held = Object.fromEntries([...document.querySelectorAll("a[download]")].map(link => [link.download, link.href]));
document.querySelectorAll('a[href^="cifs/"]').forEach(link => {
  const name = link.getAttribute("href").slice(5);
  if (held[name]) { link.href = held[name]; link.download = name; }
});

document.querySelectorAll("table.ranked").forEach(table => table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], down = head.dataset.down !== "1";
  const key = row => { const cell = row.cells[column], text = cell.dataset.key ?? cell.textContent, n = parseFloat(text); return isNaN(n) ? text : n; };
  const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
  head.dataset.down = down ? "1" : "0";
  [...body.rows].sort((a, b) => (down ? 1 : -1) * order(key(a), key(b))).forEach(row => body.append(row));
})));
start();
