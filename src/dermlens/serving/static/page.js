// The page: which images are on the bench, and what happens to them.
import { adviceOf, headOf, isCurrent, statusOf, symbol, verdict } from "./advice.js";
import { Refused, server } from "./api.js";
import { compareView } from "./compare.js";
import { button, capital, dialog, dot, h, reticle, say } from "./dom.js";
import { openHistory, remember } from "./history.js";
import { chosenMix, openMix, parameterOf } from "./mix.js";
import { canvasOf, cut, framer, loadBitmap, openCamera, wholeFrame } from "./picture.js";
import { codesOf, resultView } from "./result.js";
import { fill, fillStatic, S } from "./words.js";

const MOST = 24;
const THUMB_PX = 144;
const FORMATS = /\.(tiff?|bmp|jpe?g|png|webp)$/i;
const stage = document.getElementById("stage");
const state = { engine: server, model: null, mix: null, items: [], current: 0, comparing: false, opacity: 0.45, busy: false, count: 0 };

const current = () => state.items[state.current];
const answered = () => state.items.filter((item) => item.status === "done");
const unread = () => state.items.filter((item) => item.status === "new" || item.status === "failed");

async function put(file, name, more = {}) {
  const id = (state.count += 1);
  const bitmap = await loadBitmap(file);
  state.items.push({ id, name, file, bitmap, view: wholeFrame(), status: "new", ...more });
}

async function add(files, name) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || FORMATS.test(file.name ?? ""));
  if (!state.model) return; // not loaded yet
  if (!images.length) return say(S.noImage);
  if (state.items.length + images.length > MOST) say(fill(S.tooMany, { n: MOST }));
  const first = state.items.length;
  for (const file of images.slice(0, MOST - first)) {
    const n = state.count + 1;
    await put(file, name?.(n) ?? file.name ?? fill(S.untitled, { n }));
  }
  show(Math.min(first, state.items.length - 1));
}

async function bring({ id, blob, name, answer, at }) {
  // A result from the history, with picture and answer; an answer in an older form is asked for again.
  if (isCurrent(answer)) await put(blob, name, { sent: blob, status: "done", answer, at, kept: id });
  else {
    await put(blob, name, { kept: id });
    say(fill(S.history.oldNote, { name }));
  }
  show(state.items.length - 1);
}

function changeMix() {
  openMix(state.model, state.mix, (mix) => {
    state.mix = mix;
    readAll(answered(), true);
  });
}

async function readAll(waiting = unread(), again = false) {
  // Again: what has an answer is asked for at another case mix, and stays in sight meanwhile.
  if (state.busy) return;
  const before = current();
  const n = waiting.length;
  state.busy = true;
  try {
    for (const [index, item] of waiting.entries()) {
      if (!state.items.includes(item)) continue; // removed meanwhile
      say(again ? S.mix.again : n > 1 ? fill(S.prepare.readingAll, { i: index + 1, n }) : S.prepare.reading);
      if (!again) {
        Object.assign(item, { status: "reading", sent: undefined, heat: undefined });
        render();
      }
      await read(item);
      say([item.name, verdict(item, state.model), headOf(item)].filter(Boolean).join(". "));
    }
  } finally {
    state.busy = false;
  }
  show(Math.max(0, state.items.indexOf(waiting.includes(before) ? before : waiting[0])));
  const advice = stage.querySelector(".advice"); // on a small screen it is below the picture
  if (advice && advice.getBoundingClientRect().bottom > innerHeight) advice.scrollIntoView({ block: "end" });
}

async function read(item) {
  try {
    item.sent ??= await cut(item, state.model.input.framing);
    item.answer = await state.engine.read(item.sent, parameterOf(state.mix));
    Object.assign(item, { error: undefined, status: "done", at: Date.now() });
    await remember(item);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    Object.assign(item, { error, status: "failed" });
  }
}

function remove(...items) {
  items.forEach((item) => item.bitmap?.close());
  state.items = state.items.filter((item) => !items.includes(item));
  show(Math.max(0, Math.min(state.current, state.items.length - 1)));
}

function picker(make) {
  const input = h("input", { type: "file", accept: "image/*,.tif,.tiff,.bmp", multiple: true, id: "file", hidden: true });
  input.addEventListener("change", () => add(input.files));
  return [make(() => input.click()), input];
}

async function example() {
  const blob = await (await fetch("/static/example.jpg")).blob();
  await add([blob], () => S.start.exampleName);
}

function startView() {
  const mb = Math.round(state.model.limits.max_image_bytes / 1e6);
  const choose = picker((open) => button(S.start.choose, open, { class: "primary", "data-focus": "" }));
  const camera = () => openCamera((blob) => add([blob], (n) => fill(S.camera.name, { n })));
  return h("section", { class: "start" },
    h("div", { class: "well" }, reticle(),
      h("div", { class: "invite" },
        h("p", { class: "lead drop" }, S.start.drop),
        h("p", { class: "lead touch" }, S.start.touch),
        h("p", { class: "soft paste" }, S.start.paste),
        h("div", { class: "row" }, choose, button(S.start.camera, camera)),
        button(S.start.example, example, { class: "link" }))),
    h("div", { class: "soft small terms" }, h("p", {}, fill(S.start.formats, { mb })), h("p", {}, S.start.private)));
}

function prepareView(item) {
  const [canvas, controls] = item.bitmap ? framer(item) : [h("p", {}, S.prepare.cannotShow), null];
  const reading = item.status === "reading";
  const n = unread().length;
  const all = n > 1 ? fill(S.prepare.readAll, { n }) : S.prepare.read;
  return h("div", { class: "bench" },
    h("div", { class: "left" }, h("figure", { class: "viewport movable" }, canvas, reticle()), controls, strip()),
    h("section", { class: "panel" },
      h("h2", {}, S.prepare.heading),
      h("p", { class: "soft" }, S.prepare.help),
      h("div", { class: "row" },
        button(reading ? S.prepare.reading : all, () => readAll(), { class: "primary", disabled: state.busy, "data-focus": "" }),
        button(S.strip.remove, () => remove(item), { class: "quiet", disabled: reading }))));
}

function strip() {
  const isRead = ({ status }) => status === "done" || status === "failed";
  const label = (item) => {
    if (!isRead(item)) return "·";
    return { ok: item.answer?.diagnosis.code, uncertain: `${item.answer?.diagnosis.code}?`, error: "!" }[statusOf(item)] ?? "?";
  };
  const thumbs = state.items.map((item, index) => h("li", {}, h("button", {
    type: "button",
    class: isRead(item) ? `thumb ${adviceOf(item)}` : "thumb unread",
    title: item.name,
    "aria-label": `${fill(S.strip.show, { name: item.name })}: ${isRead(item) ? verdict(item, state.model) : S.strip.unread}`,
    "aria-current": index === state.current ? "true" : undefined,
    onclick: () => {
      state.current = index;
      render(".thumb[aria-current=true]");
    },
  }, canvasOf(item, THUMB_PX, { "aria-hidden": "true" }), isRead(item) && symbol(adviceOf(item)), h("span", {}, label(item)))));
  const more = picker((open) => button("+", open, { class: "thumb more", "aria-label": S.strip.add, title: S.strip.add }));
  return h("ul", { class: "strip", "aria-label": S.strip.label }, thumbs, h("li", {}, more));
}

function actionsOf(item) {
  return {
    adjust: item.bitmap && (() => {
      item.status = "new";
      render("canvas");
    }),
    compare: answered().length > 1 && (() => {
      state.comparing = true;
      render("h2");
    }),
    mix: state.busy ? undefined : changeMix,
    retry: item.status === "failed" && (() => readAll()),
    again: () => remove(...state.items),
  };
}

function view() {
  const item = current();
  if (!item) return startView();
  if (state.comparing) return compareView(answered(), state.model, () => show(state.current));
  if (item.status === "done" || item.status === "failed") return resultView(item, state, actionsOf(item), strip());
  return prepareView(item);
}

function show(index) {
  state.current = index;
  state.comparing = false;
  render("[data-focus]");
}

function render(focus) {
  document.body.classList.toggle("started", state.items.length > 0);
  stage.replaceChildren(view());
  if (focus) stage.querySelector(focus)?.focus({ preventScroll: true });
}

function openAbout({ scope, metrics, tested_on: tested, not_tested_on: untested, classes, card }) {
  const list = (texts) => h("ul", {}, texts.map((text) => h("li", {}, text)));
  const figure = ({ value, low, high }) => `${value.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
  const figures = Object.entries(metrics).filter(([, found]) => found.value !== null).map(([name, found]) => h("tr", {},
    h("th", { scope: "row" }, S.about.names[name] ?? name), h("td", { class: "number" }, figure(found))));
  const node = dialog(S.about.heading,
    h("p", {}, scope),
    h("div", { class: "two" },
      h("div", {}, h("h3", {}, S.about.is), list(S.about.isText)),
      h("div", {}, h("h3", {}, S.about.isNot), list(S.about.isNotText))),
    untested.length > 0 && [h("h3", {}, S.about.notTested), list(untested.map(capital))],
    figures.length > 0 && [h("h3", {}, S.about.figures),
      h("p", { class: "soft" }, fill(S.about.figuresText, { images: tested.images, lesions: tested.lesions })),
      h("table", { class: "plain" }, h("tbody", {}, figures))],
    h("h3", {}, S.about.privacy), h("p", {}, S.about.privacyText),
    h("h3", {}, S.about.classes), h("dl", { class: "classes" }, classes.map(({ name, malignancy, plain, ...known }) => [
      h("dt", { class: malignancy }, dot(), capital(name), h("span", { class: "soft small" }, ` ${S.result.kinds[malignancy]}`)),
      h("dd", {}, plain, h("span", { class: "soft small" }, ` ${codesOf(known)}`))])),
    card && h("details", {}, h("summary", {}, S.about.card), h("pre", { tabIndex: 0 }, card)),
    h("p", { class: "soft small" }, S.about.api));
  node.classList.add("about");
}

function listen() {
  document.getElementById("open-about").addEventListener("click", () => state.model && openAbout(state.model));
  document.getElementById("open-history").addEventListener("click", () => state.model && openHistory(state.model, bring));
  addEventListener("paste", ({ clipboardData: { files } }) => files.length && add(files, (n) => fill(S.pasteName, { n })));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  });
}

async function begin() {
  fillStatic();
  listen();
  stage.replaceChildren(h("p", { class: "soft" }, S.loading));
  try {
    state.model = await state.engine.describe();
  } catch (error) {
    stage.replaceChildren(h("p", { class: "complaint", role: "alert" }, `${error.message} ${error.remedy ?? ""}`));
    return;
  }
  state.mix = chosenMix(state.model);
  const { name, version, software, scope, disclaimer } = state.model;
  document.getElementById("scope").textContent = scope;
  document.getElementById("disclaimer").textContent = disclaimer;
  document.getElementById("model-line").textContent = fill(S.modelLine, { name, version, software });
  render();
}

begin();
