// The list of earlier readings, and how to get rid of them.
import { button, dialog, h, when } from "./dom.js";
import { forget, kept, recall, setKept, wipe } from "./history.js";
import { verdict } from "./result.js";
import { S } from "./strings.js";

export async function openHistory(model, bring) {
  const list = h("ul", { class: "readings" });
  const keep = h("input", { type: "checkbox", id: "keep", checked: kept() });
  keep.addEventListener("change", () => setKept(keep.checked));
  const sure = button(S.history.wipeSure, clear, { class: "danger", hidden: true });
  const first = button(S.history.wipe, () => {
    first.hidden = true;
    sure.hidden = false;
    sure.focus();
  });
  const node = dialog(S.history.heading, h("p", { class: "soft" }, S.history.text),
    h("label", { class: "check" }, keep, S.history.keep), list, h("div", { class: "row" }, first, sure));
  const pictures = [];
  node.addEventListener("close", () => pictures.forEach((url) => URL.revokeObjectURL(url)));

  function row(entry) {
    const url = URL.createObjectURL(entry.blob);
    pictures.push(url);
    const open = () => {
      node.close();
      bring(entry);
    };
    return h("li", {}, h("img", { src: url, alt: "", width: 56, height: 56 }),
      h("div", {}, h("strong", {}, verdict(entry, model)), h("span", { class: "soft small" }, `${entry.name} · ${when(entry.at, S.lang)}`)),
      button(S.history.show, open, { "aria-label": `${S.history.show}: ${entry.name}` }),
      button(S.history.remove, () => forget(entry.id).then(fill), { class: "quiet", "aria-label": `${S.history.remove}: ${entry.name}` }));
  }

  async function fill() {
    try {
      const entries = await recall();
      list.replaceChildren(...(entries.length ? entries.map(row) : [h("li", { class: "soft" }, S.history.empty)]));
      first.hidden = entries.length === 0;
    } catch {
      list.replaceChildren(h("li", { class: "soft" }, S.history.unavailable));
      first.hidden = keep.disabled = true;
    }
  }

  async function clear() {
    await wipe();
    sure.hidden = true;
    await fill();
  }

  await fill();
}
