// The explorer of a report: cells as points on a canvas. explorer.py packs what is decoded here.
"use strict";

const element = name => document.getElementById(`explorer-${name}`);
const canvas = element("canvas"), context = canvas.getContext("2d");
const menu = element("column"), tip = element("tip"), mark = element("mark");
const canUnpack = "DecompressionStream" in window;
const search = canUnpack ? element("gene") : null; // null as well in files without genes

const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const cells = JSON.parse(element("cells").textContent);
const points = new Float32Array(bytesOf(cells.points).buffer); // x and y of one cell after another
const columns = cells.columns.map(column => "levels" in column
  ? { ...column, codes: new Int16Array(bytesOf(column.codes).buffer) }
  : { ...column, steps: bytesOf(column.steps) });
const genes = JSON.parse(element("genes").textContent);
const placeOfGene = new Map(genes.map(([name], place) => [name, place]));
const placeOfUpper = new Map(genes.map(([name], place) => [name.toUpperCase(), place]));

const RAMP = ["--low", "--middle", "--high"];
const N_SUGGESTED = 50; // thousands of suggestions make typing slow
let chosen = null; // column that colours the cells
let order = []; // cells from the one at the bottom to the one on top
let nAsked = 0; // columns that were asked for
let whole = 1; // scale at which all cells are seen
let view = { x: 0, y: 0, scale: 1 }; // centre, and pixels per unit

// ----------------------------------------------------------------------------------- columns

async function geneColumn(place) {
  const [name, low, high, packed] = genes[place];
  const unpacked = new Blob([bytesOf(packed)]).stream().pipeThrough(
    new DecompressionStream("deflate"));
  const steps = new Uint8Array(await new Response(unpacked).arrayBuffer());
  return { name, low, high, steps, isGene: true };
}

const valueOf = (column, cell) =>
  column.low + column.steps[cell] / cells.n_steps * (column.high - column.low);

const short = value => String(Number(value.toPrecision(3)));

function textOf(column, cell) {
  if (!("levels" in column)) return short(valueOf(column, cell));
  return column.codes[cell] < 0 ? "none" : column.levels[column.codes[cell]];
}

function choose(column) {
  nAsked += 1;
  chosen = column;
  order = cells.names.map((_, cell) => cell);
  if (column?.steps) order.sort((a, b) => column.steps[a] - column.steps[b]); // high ones on top
  menu.selectedIndex = column?.isGene ? columns.length : columns.indexOf(column);
  if (search && !column?.isGene) search.value = "";
  element("status").textContent = column
    ? `Coloured by ${column.isGene ? "the gene " : ""}${column.name}.` : "";
  hideTip(); // it may show a value of the gene before
  showLegend();
  draw();
}

// Of names that differ in case alone the exact one is meant.
const placeOf = name => placeOfGene.get(name) ?? placeOfUpper.get(name.toUpperCase());

async function chooseGene(name) {
  const place = placeOf(name);
  if (place === undefined) {
    element("status").textContent = `This file has no gene ${name}.`;
    return;
  }
  nAsked += 1;
  const number = nAsked;
  const column = await geneColumn(place);
  if (number !== nAsked) return; // another one was asked for meanwhile
  search.value = column.name;
  choose(column);
}

// ------------------------------------------------------------------------------------ colours

const styled = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function ramp() {
  const stops = RAMP.map(name => styled(name).match(/\w\w/g).map(part => parseInt(part, 16)));
  return Array.from({ length: cells.n_steps + 1 }, (_, step) => {
    const place = step / cells.n_steps * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[first].map((part, i) =>
      Math.round(part + (place - first) * (stops[first + 1][i] - part)));
    return `rgb(${mixed})`;
  });
}

function colorOfCell() {
  const none = styled("--none");
  if (!chosen) return () => none;
  if ("levels" in chosen) return cell => chosen.colors[chosen.codes[cell]] ?? none;
  const shades = ramp();
  return cell => shades[chosen.steps[cell]];
}

function added(parent, tag, text = "", name = "") {
  const child = parent.appendChild(document.createElement(tag));
  child.textContent = text; // names in the data are text, never markup
  child.className = name;
  return child;
}

function showLegend() {
  const legend = element("legend");
  legend.replaceChildren();
  if (!chosen) return;
  if (!("levels" in chosen)) {
    const scale = added(legend, "section", "", "scale");
    const stops = RAMP.map(name => `var(${name})`);
    added(scale, "div", "", "ramp").style.background = `linear-gradient(to right, ${stops})`;
    const bounds = added(scale, "div", "", "bounds");
    for (const bound of [chosen.low, chosen.high]) added(bounds, "span", short(bound));
    return;
  }
  const counts = new Map();
  for (const code of chosen.codes) counts.set(code, (counts.get(code) ?? 0) + 1);
  for (const code of [...counts.keys()].sort((a, b) => (a < 0) - (b < 0) || a - b)) {
    const line = added(legend, "div");
    added(line, "i").style.background = chosen.colors[code] ?? "var(--none)";
    added(line, "span", `${chosen.levels[code] ?? "none"} (${counts.get(code).toLocaleString("en")})`);
  }
}

// ------------------------------------------------------------------------------------ drawing

const onScreen = cell => [
  (points[2 * cell] - view.x) * view.scale + canvas.clientWidth / 2,
  (view.y - points[2 * cell + 1]) * view.scale + canvas.clientHeight / 2,
];

function showAll() {
  const bounds = [0, 1].map(axis => {
    let [least, most] = [Infinity, -Infinity];
    for (let i = axis; i < points.length; i += 2) {
      least = Math.min(least, points[i]);
      most = Math.max(most, points[i]);
    }
    return { middle: (least + most) / 2, length: most - least || 1 };
  });
  const fits = [canvas.clientWidth, canvas.clientHeight].map(
    (size, axis) => 0.94 * size / bounds[axis].length);
  view = { x: bounds[0].middle, y: bounds[1].middle, scale: Math.min(...fits) };
  whole = view.scale;
  draw();
}
function draw() {
  const sharpness = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * sharpness;
  canvas.height = height * sharpness;
  context.scale(sharpness, sharpness);
  const colorOf = colorOfCell();
  const size = Math.sqrt(width * height / 40 / order.length) * Math.sqrt(view.scale / whole);
  const radius = Math.min(7, Math.max(1.3, size));
  for (const cell of order) {
    const [x, y] = onScreen(cell);
    if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
    context.fillStyle = colorOf(cell);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.min(200 * whole, Math.max(whole / 2, view.scale * factor));
  // what is under the pointer stays there
  const shift = 1 / view.scale - 1 / scale;
  view.x += (x - canvas.clientWidth / 2) * shift;
  view.y -= (y - canvas.clientHeight / 2) * shift;
  view.scale = scale;
  redraw();
}

function move(x, y) {
  view.x -= x / view.scale;
  view.y += y / view.scale;
  redraw();
}

let isDue = false;
function redraw() {
  hideTip();
  if (isDue) return;
  isDue = true; // events come faster than frames
  requestAnimationFrame(() => { isDue = false; draw(); });
}

// ------------------------------------------------------------------------------ what a cell is

function nearest(x, y, reach) {
  let [found, least] = [-1, reach ** 2];
  for (const cell of order) {
    const [left, top] = onScreen(cell);
    const distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance <= least) [found, least] = [cell, distance];
  }
  return found;
}

function hideTip() {
  tip.hidden = mark.hidden = true;
}

function showTip(x, y, reach) {
  const cell = nearest(x, y, reach);
  tip.hidden = mark.hidden = cell < 0;
  if (cell < 0) return;
  tip.replaceChildren();
  added(tip, "b", cells.names[cell]);
  const shown = chosen?.isGene ? [...columns, chosen] : columns;
  for (const column of shown) added(tip, "div", `${column.name}: ${textOf(column, cell)}`);
  const [left, top] = onScreen(cell);
  const [room, below] = [canvas.clientWidth - tip.offsetWidth, top + 12];
  mark.style.left = `${left}px`;
  mark.style.top = `${top}px`;
  const isLow = below + tip.offsetHeight > canvas.clientHeight;
  tip.style.left = `${Math.max(0, Math.min(left + 12, room))}px`;
  tip.style.top = `${isLow ? Math.max(0, top - 12 - tip.offsetHeight) : below}px`;
}

// --------------------------------------------------------------------------------- the controls

const held = new Map(); // pointers that are down, by where they were last
const placeOn = event => ({ x: event.offsetX, y: event.offsetY });
const reachOf = event => event.pointerType === "mouse" ? 8 : 20; // of a finger in pixels

canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, placeOn(event));
  if (event.pointerType !== "mouse") showTip(event.offsetX, event.offsetY, reachOf(event));
});
canvas.addEventListener("pointermove", event => {
  const [before, now] = [held.get(event.pointerId), placeOn(event)];
  if (!before) return showTip(now.x, now.y, reachOf(event));
  const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
  held.set(event.pointerId, now);
  if (!other) return move(now.x - before.x, now.y - before.y);
  const apart = place => Math.hypot(place.x - other.x, place.y - other.y) || 1;
  zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, event => held.delete(event.pointerId));
}
canvas.addEventListener("pointerleave", event => {
  if (event.pointerType === "mouse") hideTip(); // a finger leaves whenever it is lifted
});
canvas.addEventListener("wheel", event => {
  // until it is clicked, the page scrolls on under the pointer; a pinch comes as a wheel with ctrl
  if (!event.ctrlKey && document.activeElement !== canvas) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
}, { passive: false });

const KEYS = {
  "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: showAll,
  ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0),
  ArrowUp: () => move(0, 40), ArrowDown: () => move(0, -40),
};
canvas.addEventListener("keydown", event => {
  if (!(event.key in KEYS) || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  KEYS[event.key]();
});
element("in").addEventListener("click", KEYS["+"]);
element("out").addEventListener("click", KEYS["-"]);
element("all").addEventListener("click", showAll);

function suggest() {
  const typed = search.value.toUpperCase();
  const isLike = genes.filter(([name]) => name.toUpperCase().includes(typed));
  const starts = ([name]) => name.toUpperCase().startsWith(typed);
  isLike.sort((a, b) => starts(b) - starts(a)); // a stable sort: marker genes stay first
  element("names").replaceChildren();
  for (const [name] of isLike.slice(0, N_SUGGESTED)) {
    added(element("names"), "option").value = name;
  }
}

// What is chosen is in the address, to be sent to others. Pages within a page have no address.
function remember(kind, name) {
  if (location.protocol === "about:") return;
  history.replaceState(null, "", `#${kind}=${encodeURIComponent(name)}`);
}

function fromAddress() {
  const [, kind, name] = location.hash.match(/^#(gene|colour)=(.*)$/) ?? [];
  let wanted = name;
  try {
    wanted = kind && decodeURIComponent(name);
  } catch { /* an address that was cut short is taken as it is */ }
  if (kind === "gene" && search) return chooseGene(wanted);
  choose(columns.find(column => column.name === wanted) ?? columns[0] ?? null);
}

function prepareSearch() {
  if (!canUnpack) {
    element("search")?.replaceChildren("This browser is too old to unpack the genes.");
  }
  if (!search) return;
  search.addEventListener("input", () => {
    suggest();
    if (placeOfGene.has(search.value)) chooseGene(search.value);
  });
  search.addEventListener("change", () => {
    if (!search.value) return;
    chooseGene(search.value);
    const place = placeOf(search.value);
    if (place !== undefined) remember("gene", genes[place][0]);
  });
  suggest();
}

for (const column of columns) added(menu, "option", column.name);
added(menu, "option", "gene").hidden = true; // shown, not offered: genes have their own field
menu.disabled = !columns.length;
menu.addEventListener("change", () => {
  const column = columns[menu.selectedIndex];
  choose(column);
  remember("colour", column.name);
});
prepareSearch();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
window.addEventListener("hashchange", fromAddress);
let isShown = false;
new ResizeObserver(() => {
  if (isShown) return draw();
  isShown = canvas.clientWidth > 0;
  showAll();
}).observe(canvas);
fromAddress();
