// One picture: taken with the camera, framed in a square, and coloured by its heat map.
import { button, dialog, h, reticle } from "./dom.js";
import { S } from "./words.js";

const SHOWN_PX = 2048; // a larger picture is shrunk to this; the model needs far less
const LOSSLESS_PX = 1024;
const STEP = 0.04;
const MAX_ZOOM = 6;

export const wholeFrame = () => ({ turn: 0, zoom: 1, x: 0, y: 0 }); // quarter turns; shift as a share of the side

export async function loadBitmap(blob) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return null; // a TIFF, or damaged: the engine will say
  const scale = SHOWN_PX / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1) return bitmap;
  const size = { resizeWidth: Math.round(bitmap.width * scale), resizeHeight: Math.round(bitmap.height * scale) };
  const smaller = await createImageBitmap(bitmap, { ...size, resizeQuality: "high" });
  bitmap.close();
  return smaller;
}

export function canvasOf(item, size, props = {}) {
  // A new canvas with the framed picture; empty where the browser cannot show the file.
  const canvas = h("canvas", { width: size, height: size, ...props });
  if (item.bitmap) draw(canvas, item.bitmap, item.view);
  return canvas;
}

function draw(canvas, bitmap, view) {
  const side = canvas.width;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, side, side);
  const scale = (side / Math.min(bitmap.width, bitmap.height)) * view.zoom;
  context.translate(side * (0.5 + view.x), side * (0.5 + view.y));
  context.rotate((view.turn * Math.PI) / 2);
  context.scale(scale, scale);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, -bitmap.width / 2, -bitmap.height / 2);
}

function clamp(bitmap, view) {
  const [width, height] = view.turn % 2 ? [bitmap.height, bitmap.width] : [bitmap.width, bitmap.height];
  const short = Math.min(width, height);
  view.zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom));
  const reach = (side) => ((side / short) * view.zoom - 1) / 2;
  view.x = Math.min(reach(width), Math.max(-reach(width), view.x));
  view.y = Math.min(reach(height), Math.max(-reach(height), view.y));
}

export async function cut(item, framing) {
  // The file itself when nothing was changed, so that the page and the command line read the same bytes.
  const { turn, zoom, x, y } = item.view;
  const unchanged = turn === 0 && zoom === 1 && x === 0 && y === 0;
  if (!item.bitmap || (unchanged && framing === "centre_crop")) return item.file;
  const side = Math.round(Math.min(item.bitmap.width, item.bitmap.height) / zoom);
  return encode(canvasOf(item, Math.max(64, side)), side <= LOSSLESS_PX ? "image/png" : "image/jpeg");
}

function encode(canvas, type) {
  // Chromium's toBlob waits until the page is idle, on a busy machine for seconds.
  return blobOf(canvas.toDataURL(type, 0.95).split(",")[1], type);
}

const blobOf = (base64, type) => new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });

export function framer(item) {
  // The picture in its frame, to be moved with pointer, wheel or keys, and the controls below it.
  const canvas = canvasOf(item, 1024, { tabIndex: 0, "aria-label": S.prepare.canvas, role: "application" });
  const zoom = h("input", { type: "range", id: "zoom", min: 1, max: MAX_ZOOM, step: 0.01, value: item.view.zoom });
  const change = (by) => {
    Object.assign(item.view, by(item.view));
    clamp(item.bitmap, item.view);
    draw(canvas, item.bitmap, item.view);
    zoom.value = item.view.zoom;
  };
  const turn = (by) => () => change(({ turn: before, x, y }) => ({ turn: (before + by + 4) % 4, x: -by * y, y: by * x }));
  zoom.addEventListener("input", () => change(() => ({ zoom: Number(zoom.value) })));
  listen(canvas, change);
  change(() => ({}));
  const controls = h("div", { class: "controls" },
    button("⟲", turn(-1), { class: "icon", "aria-label": S.prepare.left, title: S.prepare.left }),
    button("⟳", turn(1), { class: "icon", "aria-label": S.prepare.right, title: S.prepare.right }),
    h("label", { class: "slider" }, h("span", {}, S.prepare.zoom), zoom),
    button(S.prepare.reset, () => change(wholeFrame), { class: "quiet" }));
  return [canvas, controls];
}

function listen(canvas, change) {
  const pointers = new Map();
  const spread = ([a, b] = pointers.values()) => Math.hypot(a.x - b.x, a.y - b.y);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : 0;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const side = canvas.getBoundingClientRect().width;
    const [right, down] = [(event.clientX - last.x) / side, (event.clientY - last.y) / side];
    if (pointers.size === 1) change(({ x, y }) => ({ x: x + right, y: y + down }));
    else if (before > 0) change(({ zoom }) => ({ zoom: (zoom * spread()) / before }));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => pointers.delete(e.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    change(({ zoom }) => ({ zoom: zoom * Math.exp(-event.deltaY / 400) }));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    const zooms = { "+": 1.1, "=": 1.1, "-": 1 / 1.1 };
    const [right, down] = moves[event.key] ?? [0, 0];
    if (!(event.key in moves || event.key in zooms)) return;
    event.preventDefault();
    change(({ x, y, zoom }) => ({ x: x + right, y: y + down, zoom: zoom * (zooms[event.key] ?? 1) }));
  });
}

export async function openCamera(taken) {
  const video = h("video", { muted: true, playsInline: true, autoplay: true, "aria-hidden": "true" });
  const problem = h("p", { class: "complaint", role: "alert", hidden: true });
  const shoot = button(S.camera.shoot, () => take(), { class: "primary", disabled: true });
  const other = button(S.camera.other, () => start(next()), { hidden: true });
  const finder = h("div", { class: "finder" }, video, reticle());
  const help = h("p", { class: "soft" }, S.camera.guide);
  const node = dialog(S.camera.heading, help, finder, problem, h("div", { class: "row" }, shoot, other));
  node.classList.add("camera");
  let stream = null;
  let cameras = [];
  let current = -1;

  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  node.addEventListener("close", stop);
  const next = () => {
    current = (current + 1) % cameras.length;
    return { deviceId: { exact: cameras[current].deviceId } };
  };

  async function start(which) {
    stop();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, width: { ideal: 1920 } }, audio: false });
      video.srcObject = stream;
      await video.play();
      cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
      other.hidden = cameras.length < 2;
      shoot.disabled = false;
      shoot.focus();
    } catch (error) {
      if (!node.isConnected) return;
      const denied = error?.name === "NotAllowedError" ? S.camera.denied : S.camera.missing;
      problem.textContent = navigator.mediaDevices ? denied : S.camera.insecure;
      problem.hidden = false;
      finder.hidden = true;
    }
    if (!node.isConnected) stop();
  }

  function take() {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    node.close();
    taken(encode(canvas, "image/jpeg"));
  }

  await start({ facingMode: "environment" });
}

// Inferno, at equal steps (van der Walt and Smith, CC0).
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function colour(share) {
  const at = share * (INFERNO.length - 1);
  const low = Math.min(INFERNO.length - 2, Math.floor(at));
  return INFERNO[low].map((value, channel) => value + (INFERNO[low + 1][channel] - value) * (at - low));
}

export async function heatMap({ relevance_png: base64 }) {
  // An explanation as a canvas whose opacity is the relevance; null where there is no evidence for the class.
  const bitmap = await createImageBitmap(blobOf(base64, "image/png"));
  const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  let largest = 0;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const share = pixels.data[i] / 255;
    largest = Math.max(largest, share);
    pixels.data.set([...colour(share), Math.min(1, Math.max(0, (share - 0.15) / 0.6)) * 255], i);
  }
  context.putImageData(pixels, 0, 0);
  return largest > 0 ? canvas : null;
}
