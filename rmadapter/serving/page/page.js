// One page, one model: an image and class names go to api/predict, its answer is drawn.
const $ = (id) => document.getElementById(id);
const SHOWN = 12; // classes in the table
const QUIET = 150; // milliseconds without a change before the server is asked
// Magma's colours at equal distances, dark to light.
const COLOURS = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

let info = null;
let image = null; // the file
let pictured = null; // the file whose picture is drawn
let picture = null;
let answer = null;
let waiting = null; // the request on its way
let timer = null;

function say(error) {
  $("error").textContent = error;
  $("error").hidden = !error;
}

function names() {
  return $("classes").value.split("\n").map((name) => name.trim()).filter(Boolean);
}

async function start() {
  try {
    info = await (await fetch("api/info")).json();
  } catch {
    say("The server does not answer.");
    return;
  }
  const {name, pretrained} = info.model;
  const method = info.adapted ? info.method ?? "an adapter" : "zero-shot";
  const where = `${info.precision} on ${info.device}`;
  $("model").textContent = `${name}${pretrained ? ` (${pretrained})` : ""}, ${method}, ${where}`;
  $("classes").value = info.class_names.join("\n");
  $("template").value = info.template;
  if (info.strength_obstacle) {
    $("strength").disabled = true;
    $("strength-note").textContent = `It is fixed: ${info.strength_obstacle}.`;
  }
  if (!info.adapted) $("adapted-head").hidden = true;
  for (const layer of info.reconstruction.layers) $("layer").add(new Option(`layer ${layer}`, layer));
  if (info.reconstruction.layers.length > 1) $("layer").add(new Option("the mean of the layers", "mean"), 0);
  $("layer").selectedIndex = 0;
  const obstacle = info.reconstruction.obstacle;
  $("map-note").textContent = obstacle
    ? `There is no map of the reconstruction error: ${obstacle}.`
    : "How badly the adapter rebuilds what each patch looks like inside the model: what it finds strange is light.";
  drawScale();
  document.body.dataset.ready = "true";
}

function take(file) {
  if (!file) return;
  if (file.size > info.limits.bytes) {
    say(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; valid: up to ${info.limits.bytes / 1e6} MB`);
    return;
  }
  image = file;
  $("file-name").textContent = file.name;
  ask();
}

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(ask, QUIET);
}

async function ask() {
  clearTimeout(timer);
  if (!image) return;
  waiting?.abort();
  const mine = waiting = new AbortController();
  const asked = image;
  const form = new FormData();
  form.append("image", asked);
  form.append("classes", $("classes").value);
  form.append("template", $("template").value);
  form.append("strength", $("strength").value);
  form.append("errors", String(!info.reconstruction.obstacle));
  form.append("picture", String(asked !== pictured));
  $("results").classList.add("busy");
  try {
    const response = await fetch("api/predict", {method: "POST", body: form, signal: mine.signal});
    const found = await response.json();
    if (mine !== waiting) return;
    if (!response.ok) {
      say(found.error);
      return;
    }
    if (found.picture) {
      picture = await loaded(found.picture);
      pictured = asked;
    }
    say("");
    answer = found;
    show();
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer, or refused the image before reading all of it.");
  } finally {
    if (mine === waiting) {
      waiting = null;
      $("results").classList.remove("busy");
    }
  }
}

function loaded(address) {
  return new Promise((resolve, reject) => {
    const found = new Image();
    found.onload = () => resolve(found);
    found.onerror = () => reject(new Error("the picture cannot be shown"));
    found.src = address;
  });
}

function show() {
  const {classes, zeroshot, adapted, temperature, notes, strength} = answer;
  // The likeliest of either first, so that none of them is left out.
  const by = classes.map((_, row) => Math.max(zeroshot[row], adapted?.[row] ?? 0));
  const order = classes.map((_, row) => row).sort((a, b) => by[b] - by[a]);
  const [first, firstAdapted] = [zeroshot, adapted ?? []].map((found) => found.indexOf(Math.max(...found)));
  const rows = order.slice(0, SHOWN).map((row) => {
    const line = document.createElement("tr");
    const cell = line.insertCell();
    cell.textContent = classes[row];
    bar(line, "zeroshot", zeroshot[row], row === first);
    if (adapted) bar(line, "adapted", adapted[row], row === firstAdapted);
    return line;
  });
  $("results").tBodies[0].replaceChildren(...rows);
  $("results").hidden = false;
  const left = classes.length - rows.length;
  const said = [`Strength ${strength.toFixed(2)}.`];
  if (left) said.unshift(`And ${left} more classes.`);
  if (temperature) said.push(`Adapted probabilities are calibrated, at temperature ${temperature.toFixed(2)}.`);
  $("more").textContent = said.join(" ");
  $("notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), {textContent: note})));
  $("notes").hidden = !notes.length;
  $("map-controls").hidden = !answer.reconstruction;
  draw();
}

function bar(line, kind, value, first) {
  const cell = line.insertCell();
  cell.className = first ? `${kind} first` : kind;
  cell.dataset.probability = value;
  const drawn = document.createElement("span");
  drawn.className = "bar";
  drawn.style.width = `${100 * value}%`;
  cell.append(`${(100 * value).toFixed(1)} %`, drawn);
}

// Errors of the chosen layer, or the mean of all: rows of patches.
function errors() {
  const layers = answer?.reconstruction;
  if (!layers) return null;
  const chosen = $("layer").value;
  if (chosen !== "mean") return layers.find(({layer}) => String(layer) === chosen).errors;
  return layers[0].errors.map((row, y) =>
    row.map((_, x) => layers.reduce((sum, layer) => sum + layer.errors[y][x], 0) / layers.length));
}

function colour(share) {
  const place = share * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[below].map((from, channel) => from + (place - below) * (COLOURS[below + 1][channel] - from));
}

function draw() {
  const canvas = $("picture");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 1;
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", "What the model sees, with the reconstruction error of each patch");
  const rows = errors();
  if (!rows) return;
  const [least, largest] = [Math.min(...rows.flat()), Math.max(...rows.flat())];
  const [height, width] = [canvas.height / rows.length, canvas.width / rows[0].length];
  pen.globalAlpha = Number($("opacity").value);
  rows.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = `rgb(${colour((value - least) / (largest - least || 1)).join(" ")})`;
    pen.fillRect(x * width, y * height, width, height);
  }));
  $("least").textContent = least.toPrecision(3);
  $("largest").textContent = largest.toPrecision(3);
}

function drawScale() {
  const pen = $("scale").getContext("2d");
  for (let x = 0; x < 256; x += 1) {
    pen.fillStyle = `rgb(${colour(x / 255).join(" ")})`;
    pen.fillRect(x, 0, 1, 1);
  }
}

function point(event) {
  const rows = errors();
  const box = $("picture").getBoundingClientRect();
  const y = Math.floor((event.clientY - box.top) / box.height * (rows?.length ?? 0));
  const x = Math.floor((event.clientX - box.left) / box.width * (rows?.[0].length ?? 0));
  const value = rows?.[y]?.[x];
  $("pointed").textContent = value === undefined ? "" : `here ${value.toPrecision(3)}`;
}

$("file").addEventListener("change", ({target}) => take(target.files[0]));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  // Beside the field too, where the browser would open the image in the page's place.
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", ({clipboardData}) => take(clipboardData.files[0]));
$("strength").addEventListener("input", () => {
  $("strength-shown").textContent = Number($("strength").value).toFixed(2);
  askSoon();
});
for (const id of ["classes", "template"]) $(id).addEventListener("input", () => (names().length > 1 ? askSoon() : null));
for (const id of ["layer", "opacity"]) $(id).addEventListener("input", draw);
$("picture").addEventListener("pointermove", point);
$("picture").addEventListener("pointerleave", () => ($("pointed").textContent = ""));
start();
