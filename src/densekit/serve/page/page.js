// Pictures in, answers out. All state is in `shots`; `show` draws the one that is chosen.

import { draw, readMap, strongestPart } from "./maps.js";

const TOP = 5;
const AT_ONCE = 4; // requests under way
const LARGEST = 2000; // pixels of a side that is kept for drawing
const $ = (id) => document.getElementById(id);
const shots = []; // {file, name, url, picture, row, ms, trip, problem, maps, chosen}
const waiting = [];
let model, current = null, asking = 0;
let token = sessionStorage.getItem("densekit-token");

// Talking to the server ---------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await response.json().catch(() => ({}));
  return { status: response.status, body };
}

async function start() {
  try {
    const { status, body } = await ask("v1/model");
    if (status === 401) return askForToken();
    if (status !== 200) throw new Error(body.error || `The server answers ${status}.`);
    model = body;
  } catch (error) {
    $("model-line").textContent = error.message;
    return undefined;
  }
  showCard();
  $("token-form").hidden = true;
  $("main").hidden = false;
  return undefined;
}

function askForToken() {
  $("model-line").textContent = "";
  $("token-note").textContent = token ? "That token is not the right one." : "";
  $("token-form").hidden = false;
  $("token").focus();
}

async function predict(shot, label = null) {
  const cam = model.maps ? `&cam=${label === null ? "answers" : label}` : "";
  const known = shot.file.type.startsWith("image/");
  const began = performance.now();
  const { status, body } = await ask(`v1/predict?topk=${TOP}${cam}`, {
    method: "POST",
    body: shot.file,
    headers: { "Content-Type": known ? shot.file.type : "application/octet-stream" },
  });
  if (status !== 200) throw new Error(body.error || `The server answers ${status}.`);
  const [row] = body.predictions;
  if (row.error) throw new Error(row.error);
  for (const map of row.cam || []) shot.maps.set(map.class, readMap(map));
  return { row, ms: body.ms, trip: performance.now() - began };
}

async function work() {
  while (asking < AT_ONCE && waiting.length) {
    const shot = waiting.shift();
    asking += 1;
    answer(shot).finally(() => {
      asking -= 1;
      work();
    });
  }
}

async function answer(shot) {
  shot.problem = null;
  try {
    if (shot.file.size > model.limits.max_bytes) {
      throw new Error(`This file is larger than ${megabytes(model.limits.max_bytes)}, the most that is taken.`);
    }
    Object.assign(shot, await predict(shot));
    shot.chosen = model.maps ? shot.row.topk[0].class : null;
    say(`${shot.name}: ${shot.row.topk.map((a) => `${a.label} ${percent(a.prob)}`).join(", ")}`);
  } catch (error) {
    shot.problem = sentence(error.message);
    say(`${shot.name}: ${shot.problem}`);
  }
  if (shot === current) show(shot);
  showStrip();
}

// Pictures ----------------------------------------------------------------------------------

async function add(files) {
  const added = [];
  for (const file of files) {
    const shot = { file, name: file.name || "Picture", url: URL.createObjectURL(file), maps: new Map() };
    shot.picture = await readPicture(file);
    added.push(shot);
  }
  if (!added.length) return;
  shots.push(...added);
  waiting.push(...added);
  show(added[0]);
  showStrip();
  work();
}

// {image, width, height}, large ones made smaller; null for a TIFF, or what is no image at all.
async function readPicture(file) {
  const image = await createImageBitmap(file).catch(() => null);
  if (!image) return null;
  const { width, height } = image, part = LARGEST / Math.max(width, height);
  if (part >= 1) return { image, width, height };
  const size = { resizeWidth: Math.ceil(width * part), resizeHeight: Math.ceil(height * part) };
  const small = await createImageBitmap(image, { ...size, resizeQuality: "high" });
  image.close();
  return { image: small, width, height };
}

function show(shot) {
  current = shot;
  $("empty").hidden = true;
  for (const id of ["figure", "controls", "answers"]) $(id).hidden = false;
  $("answers-title").textContent = shot.name;
  $("problem").hidden = $("retry").hidden = !shot.problem;
  $("problem").textContent = shot.problem || "";
  $("other").hidden = !(shot.row && model.maps);
  $("legend").hidden = !shot.maps.has(shot.chosen);
  $("times").textContent = shot.ms ? times(shot) : "";
  showBars(shot);
  paint();
}

function paint() {
  if (!current || $("figure").hidden) return;
  const values = current.maps.get(current.chosen);
  const ground = getComputedStyle(document.body).backgroundColor;
  draw($("canvas"), current.picture, model.preprocessing, values, $("strength").value / 100, ground);
  const label = model.classes[current.chosen];
  const unseen = current.picture ? "" : "This browser cannot show this file. ";
  const caption = values
    ? `${unseen}What speaks for ${label}, and against it. The map is exact: its mean and a constant make the score.`
    : `${unseen}The network sees the bright square.`;
  $("caption").textContent = caption;
  const where = values ? ` What speaks for ${label} is strongest at ${strongestPart(values)}.` : "";
  $("canvas").setAttribute("aria-label", `${current.name}.${where}`);
}

function showBars(shot) {
  const rows = shot.row ? shot.row.topk : [];
  $("bars").classList.toggle("waiting", !shot.row && !shot.problem);
  if (!shot.row && !shot.problem) rows.push({ label: "…", prob: 0, class: null });
  $("bars").replaceChildren(...rows.map((found) => {
    const item = document.createElement("li");
    item.append(bar(shot, found));
    return item;
  }));
}

function bar(shot, found) {
  const pressable = model.maps && found.class !== null;
  const box = element(pressable ? "button" : "div", "answer");
  const fill = element("div", "fill");
  fill.style.setProperty("--share", `${100 * found.prob}%`);
  const track = element("div", "track");
  track.append(fill);
  box.append(
    element("span", "label", found.label),
    element("span", "percent", found.class === null ? "" : percent(found.prob)),
    track,
  );
  if (pressable) {
    box.setAttribute("aria-pressed", String(shot.chosen === found.class));
    box.title = `Show what speaks for ${found.label}`;
    box.addEventListener("click", () => {
      shot.chosen = shot.chosen === found.class ? null : found.class;
      show(shot);
      [...$("bars").querySelectorAll("button")][shot.row.topk.indexOf(found)].focus();
    });
  }
  return box;
}

function showStrip() {
  $("strip").hidden = shots.length < 2;
  $("strip").replaceChildren(...shots.map((shot) => {
    const item = document.createElement("li"), button = element("button", shot.problem ? "failed" : "");
    button.setAttribute("aria-label", shot.problem ? `${shot.name}: ${shot.problem}` : shot.name);
    button.setAttribute("aria-current", String(shot === current));
    if (shot.picture) {
      const image = new Image();
      image.src = shot.url;
      image.alt = "";
      button.append(image);
    } else button.append(shot.name.slice(-8));
    button.addEventListener("click", () => {
      show(shot);
      showStrip();
    });
    item.append(button);
    return item;
  }));
}

async function mapOf(name) {
  const label = model.classes.indexOf(name), shot = current;
  if (label < 0 || !shot || !shot.row) return;
  try {
    if (!shot.maps.has(label)) await predict(shot, label);
    shot.chosen = label;
    say(`Map of ${name}`);
  } catch (error) {
    shot.problem = sentence(error.message);
  }
  show(shot);
}

// The model card ----------------------------------------------------------------------------

function showCard() {
  const { preprocessing: pre, metrics, provenance, classes } = model;
  document.title = `${model.name} · densekit`;
  $("model-name").textContent = model.name;
  const top1 = metrics.top1 === undefined ? "" : ` · top-1 ${percent(metrics.top1)}`;
  $("model-line").textContent = `${classes.length.toLocaleString()} classes${top1}`;
  const size = pre.resize === null ? "" : `short side to ${pre.resize}, then `;
  const rows = [
    ["Task", model.task === "multiclass" ? "one class an image" : "any number of classes an image"],
    ["Parameters", model.parameters && model.parameters.toLocaleString()],
    ["Sees", `${pre.channels === 3 ? "colour" : "grey"}, ${size}the centre ${pre.crop} × ${pre.crop} pixels`],
    ["Top-1", metrics.top1 !== undefined && percent(metrics.top1)],
    ["Top-5", metrics.top5 !== undefined && percent(metrics.top5)],
    ["Measured on", metrics.count && `${metrics.count.toLocaleString()} validation images`],
    ["Computed by", `${model.engine}, ${model.precision}, ${model.device}`],
    ["Made with", Object.entries(provenance.versions || {}).map((pair) => pair.join(" ")).join(", ")],
    ["From", Object.values(provenance.source || {}).join(", ")],
    ["Takes", `files of up to ${megabytes(model.limits.max_bytes)}, ${Math.round(model.limits.max_pixels / 1e6)} megapixels`],
  ];
  $("card").replaceChildren(...rows.filter(([, text]) => text).flatMap(([name, text]) =>
    [element("dt", "", name), element("dd", "", text)]));
  $("classes-title").textContent = `All ${classes.length.toLocaleString()} classes`;
  $("class-list").replaceChildren(...classes.map((name) => element("li", "", name)));
  $("classes").replaceChildren(...classes.map((name) => Object.assign(element("option", ""), { value: name })));
}

// The camera --------------------------------------------------------------------------------

async function openCamera() {
  if (!navigator.mediaDevices) return $("capture").click(); // a phone's own, without https
  $("camera-note").textContent = "";
  $("camera-dialog").showModal();
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    $("camera-note").textContent = `There is no picture from a camera: ${error.message}.`;
  }
  return undefined;
}

function shoot() {
  const video = $("video"), photo = document.createElement("canvas");
  if (!video.videoWidth) return;
  [photo.width, photo.height] = [video.videoWidth, video.videoHeight];
  photo.getContext("2d").drawImage(video, 0, 0);
  photo.toBlob((blob) => add([new File([blob], "Camera", { type: blob.type })]), "image/jpeg", 0.92);
  $("camera-dialog").close();
}

function stopCamera() {
  const stream = $("video").srcObject;
  if (stream) stream.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
}

// Small things ------------------------------------------------------------------------------

function element(tag, style, text = "") {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.textContent = text;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.001 ? 2 : 1)} %`;
const megabytes = (bytes) => `${Math.round(bytes / 2 ** 20)} MB`;
const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
const say = (text) => { $("said").textContent = text; };

function times({ ms, trip }) {
  const round = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
  return `${round(trip)} ms there and back: decoding ${round(ms.decode)}, queue ${round(ms.queue)}, network ${round(ms.compute)}`;
}

function listen() {
  const on = (id, event, work_) => $(id).addEventListener(event, work_);
  for (const id of ["choose", "more"]) on(id, "click", () => $("files").click());
  for (const id of ["camera", "camera-again"]) on(id, "click", openCamera);
  for (const id of ["files", "capture"]) {
    on(id, "change", () => {
      add([...$(id).files]);
      $(id).value = "";
    });
  }
  on("shoot", "click", shoot);
  on("camera-close", "click", () => $("camera-dialog").close());
  on("camera-dialog", "close", stopCamera);
  on("strength", "input", paint);
  on("class", "change", () => mapOf($("class").value.trim()));
  on("retry", "click", () => {
    Object.assign(current, { problem: null, row: null });
    waiting.push(current);
    show(current);
    work();
  });
  on("token-form", "submit", (event) => {
    event.preventDefault();
    token = $("token").value;
    sessionStorage.setItem("densekit-token", token);
    start();
  });
  document.addEventListener("paste", (event) => model && add([...event.clipboardData.files]));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && current && !$("camera-dialog").open) {
      current.chosen = null;
      show(current);
    }
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop" && model) add([...event.dataTransfer.files]);
    });
  }
  new ResizeObserver(paint).observe($("stage"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}

listen();
start();
