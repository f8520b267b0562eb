// A reading as a file: the server's answer as it came, with the model and the time. The image stays out of it.
import { h } from "./dom.js";

export function saveJson(item, model) {
  const { name, version, sha256, software, disclaimer } = model;
  const reading = {
    file: item.name,
    read_at: new Date(item.at).toISOString(),
    disclaimer,
    model: { name, version, sha256, software },
    frame: item.view,
    prediction: item.answer,
  };
  const url = URL.createObjectURL(new Blob([JSON.stringify(reading, null, 1)], { type: "application/json" }));
  const day = new Date(item.at).toISOString().slice(0, 10);
  h("a", { href: url, download: `dermlens-${day}-${item.id}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
