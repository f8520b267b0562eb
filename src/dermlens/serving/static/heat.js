// The heat map: relevance from the server, coloured here, laid over the frame.
import { explain } from "./api.js";

// Inferno, at equal steps (van der Walt and Smith, CC0).
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function colour(share) {
  const at = share * (INFERNO.length - 1);
  const low = Math.min(INFERNO.length - 2, Math.floor(at));
  return INFERNO[low].map((value, channel) => value + (INFERNO[low + 1][channel] - value) * (at - low));
}

export async function heatOf(item, code) {
  // A canvas whose opacity is the relevance; null where nothing speaks for the class. Asked for once.
  item.heat ??= new Map();
  if (!item.heat.has(code)) item.heat.set(code, paint((await explain(item.sent, code)).relevance_png));
  return item.heat.get(code);
}

async function paint(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  let largest = 0;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const share = pixels.data[i] / 255;
    largest = Math.max(largest, share);
    const [red, green, blue] = colour(share);
    pixels.data.set([red, green, blue, Math.min(1, Math.max(0, (share - 0.15) / 0.6)) * 255], i);
  }
  context.putImageData(pixels, 0, 0);
  return largest > 0 ? canvas : null;
}
