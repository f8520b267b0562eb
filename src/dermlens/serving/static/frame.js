// One image and the square cut out of it: turned in quarters, zoomed, moved. The square is what is sent.
const SHOWN_PX = 2048; // a larger picture is held at this size; the model needs far less
const LOSSLESS_PX = 1024;
const STEP = 0.04;

export const untouched = () => ({ turn: 0, zoom: 1, x: 0, y: 0 });

export async function loadBitmap(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return null; // a TIFF, or damaged: the server will say
  }
  const scale = SHOWN_PX / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1) return bitmap;
  const size = { resizeWidth: Math.round(bitmap.width * scale), resizeHeight: Math.round(bitmap.height * scale) };
  const smaller = await createImageBitmap(bitmap, { ...size, resizeQuality: "high" });
  bitmap.close();
  return smaller;
}

function turned(bitmap, view) {
  return view.turn % 2 ? [bitmap.height, bitmap.width] : [bitmap.width, bitmap.height];
}

export function clamp(bitmap, view) {
  const [width, height] = turned(bitmap, view);
  const short = Math.min(width, height);
  view.zoom = Math.min(6, Math.max(1, view.zoom));
  const reach = (side) => ((side / short) * view.zoom - 1) / 2;
  view.x = Math.min(reach(width), Math.max(-reach(width), view.x));
  view.y = Math.min(reach(height), Math.max(-reach(height), view.y));
}

export function draw(canvas, bitmap, view) {
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

export function isUntouched(view) {
  return view.turn === 0 && view.zoom === 1 && view.x === 0 && view.y === 0;
}

export async function cut(item, framing) {
  // The file itself when nothing was changed, so that the page and the command line see the same bytes.
  if (!item.bitmap || (isUntouched(item.view) && framing === "centre_crop")) return item.file;
  const side = Math.round(Math.min(item.bitmap.width, item.bitmap.height) / item.view.zoom);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.max(64, side);
  draw(canvas, item.bitmap, item.view);
  const type = side <= LOSSLESS_PX ? "image/png" : "image/jpeg";
  return encoded(canvas, type);
}

export function encoded(canvas, type) {
  // Chromium's toBlob waits for the page to be idle, on a busy machine for seconds: somebody waits for this one.
  const url = canvas.toDataURL(type, 0.95);
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type });
}

export function makeMovable(canvas, item, changed) {
  const pointers = new Map();
  const apply = () => {
    clamp(item.bitmap, item.view);
    draw(canvas, item.bitmap, item.view);
    changed();
  };
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : 0;
    const side = canvas.getBoundingClientRect().width;
    if (pointers.size === 1) {
      item.view.x += (event.clientX - last.x) / side;
      item.view.y += (event.clientY - last.y) / side;
    }
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2 && before > 0) item.view.zoom *= spread() / before;
    apply();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => pointers.delete(e.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    item.view.zoom *= Math.exp(-event.deltaY / 400);
    apply();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    if (event.key in moves) {
      item.view.x += moves[event.key][0];
      item.view.y += moves[event.key][1];
    } else if (event.key === "+" || event.key === "=") item.view.zoom *= 1.1;
    else if (event.key === "-") item.view.zoom /= 1.1;
    else return;
    event.preventDefault();
    apply();
  });
  return apply;
}
