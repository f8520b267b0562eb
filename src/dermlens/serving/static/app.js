// The page: what is on the bench, and what happens to it.
import { openAbout } from "./about.js";
import { getModel, onTokenNeeded, predict, Refused } from "./api.js";
import { openCamera } from "./camera.js";
import { compareView } from "./compare.js";
import { button, h, reticle, say, setCloseLabel } from "./dom.js";
import { clamp, cut, draw, loadBitmap, makeMovable, untouched } from "./frame.js";
import { remember } from "./history.js";
import { openHistory } from "./history_view.js";
import { resultPanel, verdict, viewport } from "./result.js";
import { fillStatic, S } from "./strings.js";
import { askToken } from "./token.js";

const MOST = 24;
const THUMB_PX = 144;
const stage = document.getElementById("stage");
const state = { model: null, items: [], current: 0, mode: "work", opacity: 0.45, dragging: false, busy: false, count: 0 };

const current = () => state.items[state.current];
const unread = () => state.items.filter((item) => item.status === "new" || item.status === "failed");

async function add(files, name) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || /\.(tiff?|bmp|jpe?g|png|webp)$/i.test(file.name ?? ""));
  if (!images.length) return say(S.noImage);
  if (state.items.length + images.length > MOST) say(S.tooMany(MOST));
  const first = state.items.length;
  for (const file of images.slice(0, MOST - state.items.length)) {
    state.count += 1;
    const bitmap = await loadBitmap(file);
    const called = name?.(state.count) ?? file.name ?? S.untitled(state.count);
    state.items.push({ id: state.count, name: called, file, bitmap, view: untouched(), status: "new" });
  }
  state.mode = "work";
  state.current = Math.min(first, state.items.length - 1);
  render("[data-focus]");
}

function bring(entry) {
  // A reading from the history comes back whole: picture, answer and all.
  loadBitmap(entry.blob).then((bitmap) => {
    state.count += 1;
    const item = { id: state.count, name: entry.name, file: entry.blob, sent: entry.blob, bitmap, view: untouched() };
    state.items.push({ ...item, status: "done", answer: entry.answer, at: entry.at, kept: entry.id });
    state.current = state.items.length - 1;
    state.mode = "work";
    render("[data-focus]");
  });
}

async function readAll() {
  if (state.busy) return;
  const waiting = current().status === "done" ? [current()] : unread();
  state.busy = true;
  try {
    for (const [index, item] of waiting.entries()) {
      if (!state.items.includes(item)) continue; // removed meanwhile
      say(S.prepare.reading(index + 1, waiting.length));
      item.status = "reading";
      render();
      await read(item);
      say(S.readDone(item.name, item.error ? S.result.error : verdict(item, state.model)));
    }
  } finally {
    state.busy = false;
  }
  state.current = Math.max(0, state.items.indexOf(waiting[0]));
  render("[data-focus]");
  const told = stage.querySelector("[data-focus]"); // on a phone it stands below the picture
  if (told && told.getBoundingClientRect().bottom > 0.8 * innerHeight) told.scrollIntoView({ block: "center" });
}

async function read(item) {
  try {
    item.sent = await cut(item, state.model.input.framing);
    item.heat = undefined;
    item.answer = await predict(item.sent);
    item.error = undefined;
    item.status = "done";
    item.at = Date.now();
    item.kept = undefined;
    await remember(item);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    item.error = error;
    item.status = "failed";
  }
}

function remove(item) {
  item.bitmap?.close();
  state.items.splice(state.items.indexOf(item), 1);
  state.current = Math.max(0, Math.min(state.current, state.items.length - 1));
  render("[data-focus]");
}

function pick(many = true) {
  const input = h("input", { type: "file", accept: "image/*,.tif,.tiff,.bmp", multiple: many, id: "file", hidden: true });
  input.addEventListener("change", () => add(input.files));
  return input;
}

const camera = () => openCamera((blob) => add([blob], S.camera.name));

async function example() {
  const blob = await (await fetch("/static/example.jpg")).blob();
  await add([blob], () => S.start.exampleName);
}

function startView() {
  const mb = Math.round(state.model.limits.max_image_bytes / 1e6);
  const file = pick();
  return h("section", { class: "start" },
    h("div", { class: "well" }, reticle(),
      h("div", { class: "invite" },
        h("p", { class: "lead drop" }, S.start.drop),
        h("p", { class: "lead touch" }, S.start.touch),
        h("p", { class: "soft paste" }, S.start.paste),
        h("div", { class: "row" },
          button(S.start.choose, () => file.click(), { class: "primary", "data-focus": "" }),
          button(S.start.camera, camera)),
        button(S.start.example, example, { class: "link" }), file)),
    h("div", { class: "soft small terms" }, h("p", {}, S.start.formats(mb)), h("p", {}, S.start.private)));
}

function prepareControls(item, apply) {
  const turn = (by) => () => {
    const { turn: before, x, y } = item.view;
    Object.assign(item.view, { turn: (before + by + 4) % 4, x: -by * y, y: by * x }); // what is framed stays framed
    apply();
  };
  const zoom = h("input", { type: "range", id: "zoom", min: 1, max: 6, step: 0.01, value: item.view.zoom });
  zoom.addEventListener("input", () => {
    item.view.zoom = Number(zoom.value);
    apply();
  });
  const node = h("div", { class: "controls" },
    button("⟲", turn(-1), { class: "icon", "aria-label": S.prepare.left, title: S.prepare.left }),
    button("⟳", turn(1), { class: "icon", "aria-label": S.prepare.right, title: S.prepare.right }),
    h("label", { class: "slider" }, h("span", {}, S.prepare.zoom), zoom),
    button(S.prepare.reset, () => {
      item.view = untouched();
      apply();
    }, { class: "quiet" }));
  return [node, () => (zoom.value = item.view.zoom)];
}

function prepareView(item) {
  const canvas = h("canvas", { width: 1024, height: 1024, tabIndex: 0, "aria-label": S.prepare.canvas, role: "application" });
  let controls = null;
  if (item.bitmap) {
    clamp(item.bitmap, item.view);
    draw(canvas, item.bitmap, item.view);
    let moved = () => {};
    const apply = makeMovable(canvas, item, () => moved());
    [controls, moved] = prepareControls(item, apply);
  }
  const waiting = unread().length;
  const reading = item.status === "reading";
  const left = h("div", { class: "left" },
    h("figure", { class: "viewport movable" }, item.bitmap ? canvas : h("p", {}, S.prepare.cannotShow), reticle()), controls, strip());
  const right = h("section", { class: "panel" },
    h("h2", {}, S.prepare.heading),
    h("p", { class: "soft" }, S.prepare.help),
    h("div", { class: "row" },
      button(reading ? S.prepare.reading(1, 1) : S.prepare.read(waiting || 1), readAll, { class: "primary", disabled: state.busy, "data-focus": "" }),
      button(S.strip.remove, () => remove(item), { class: "quiet", disabled: reading })));
  return h("div", { class: "bench" }, left, right);
}

function strip() {
  const thumbs = state.items.map((item, index) => {
    const canvas = h("canvas", { width: THUMB_PX, height: THUMB_PX, "aria-hidden": "true" });
    if (item.bitmap) draw(canvas, item.bitmap, item.view);
    const label = item.status === "done" ? (item.answer.status === "ok" ? item.answer.diagnosis.code : "?") : item.status === "failed" ? "!" : "·";
    const show = () => {
      state.current = index;
      render(".thumb[aria-current=true]");
    };
    const told = item.status === "done" ? verdict(item, state.model) : S.strip.unread;
    return h("li", {}, h("button", { type: "button", class: label === "·" ? "thumb unread" : "thumb", onclick: show, title: item.name,
      "aria-label": `${S.strip.show(item.name)}: ${told}`, "aria-current": index === state.current ? "true" : undefined }, canvas, h("span", {}, label)));
  });
  const file = pick();
  const more = h("li", {}, h("button", { type: "button", class: "thumb more", "aria-label": S.strip.add, title: S.strip.add, onclick: () => file.click() }, "+"), file);
  return h("ul", { class: "strip", "aria-label": S.strip.label }, thumbs, more);
}

function resultView(item) {
  const port = viewport(item, state);
  const left = h("div", { class: "left" }, port.figure, port.controls, strip());
  const finished = state.items.filter((each) => each.status === "done");
  const actions = {
    adjust: item.bitmap ? () => {
      item.status = "new";
      render("canvas");
    } : null,
    compare: finished.length > 1 ? () => {
      state.mode = "compare";
      render("h2");
    } : null,
    retry: item.status === "failed" ? readAll : null,
    remove: () => remove(item),
    again: () => {
      state.items.forEach((each) => each.bitmap?.close());
      state.items = [];
      render("[data-focus]");
    },
  };
  return h("div", { class: "bench" }, left, resultPanel(item, state.model, actions, port));
}

function view() {
  const item = current();
  if (!item) return startView();
  if (state.mode === "compare") {
    return compareView(state.items.filter((each) => each.status === "done"), state.model, () => {
      state.mode = "work";
      render("[data-focus]");
    });
  }
  return item.status === "done" || item.status === "failed" ? resultView(item) : prepareView(item);
}

function render(focus) {
  document.body.classList.toggle("started", state.items.length > 0);
  stage.replaceChildren(view());
  if (focus) stage.querySelector(focus)?.focus({ preventScroll: true });
}

function listen() {
  document.getElementById("open-about").addEventListener("click", () => state.model && openAbout(state.model));
  document.getElementById("open-history").addEventListener("click", () => state.model && openHistory(state.model, bring));
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (state.model && files.length) add(files, S.pasteName);
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (state.model && event.dataTransfer.files.length) add(event.dataTransfer.files);
  });
}

async function begin() {
  fillStatic();
  setCloseLabel(S.close);
  onTokenNeeded(askToken);
  listen();
  stage.replaceChildren(h("p", { class: "soft" }, S.loading));
  try {
    state.model = await getModel();
  } catch (error) {
    stage.replaceChildren(h("p", { class: "complaint", role: "alert" }, `${error.message} ${error.remedy ?? ""}`));
    return;
  }
  const { name, version, software, scope, disclaimer } = state.model;
  document.getElementById("scope").textContent = scope;
  document.getElementById("disclaimer").textContent = disclaimer;
  document.getElementById("model-line").textContent = S.modelLine(name, version, software);
  render();
}

begin();
