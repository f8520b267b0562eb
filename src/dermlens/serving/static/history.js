// The history of results: in the IndexedDB of this browser and nowhere else. Without it the page works all the same.
import { headOf, isCurrent, verdict } from "./advice.js";
import { button, dialog, h, when } from "./dom.js";
import { S } from "./words.js";

const STORE = "readings";
const SETTING = "dermlens-keep-history";
const MOST = 60;

async function within(mode, work) {
  const opening = indexedDB.open("dermlens", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  const database = await new Promise((resolve, reject) => {
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

function isOn() {
  try {
    return localStorage.getItem(SETTING) !== "no";
  } catch {
    return false;
  }
}

export async function remember(item) {
  // A picture that is read again, at another case mix or in another frame, keeps its place.
  if (!isOn()) return;
  const { name, at, sent, answer, kept } = item;
  const entry = { name, at, blob: sent, answer, ...(kept === undefined ? {} : { id: kept }) };
  try {
    item.kept = await within("readwrite", (store) => store.put(entry));
    const ids = await within("readonly", (store) => store.getAllKeys());
    for (const id of ids.slice(0, Math.max(0, ids.length - MOST))) await forget(id);
  } catch {
    // no space, or storage is switched off: the result itself is not touched
  }
}

const forget = (id) => within("readwrite", (store) => store.delete(id));

export async function openHistory(model, bring) {
  const list = h("ul", { class: "readings" });
  const keep = h("input", { type: "checkbox", id: "keep", checked: isOn() });
  keep.addEventListener("change", () => localStorage.setItem(SETTING, keep.checked ? "yes" : "no"));
  const sure = button(S.history.wipeSure, wipe, { class: "danger", hidden: true });
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
    const [said, todo] = isCurrent(entry.answer) ? [verdict(entry, model), headOf(entry)] : [S.history.old, null];
    return h("li", {}, h("img", { src: url, alt: "", width: 56, height: 56 }),
      h("div", {}, h("strong", {}, said), todo && h("span", { class: "small" }, todo), h("span", { class: "soft small" }, `${entry.name} · ${when(entry.at)}`)),
      button(S.history.show, open, { "aria-label": `${S.history.show}: ${entry.name}` }),
      button(S.history.remove, () => forget(entry.id).then(refresh), { class: "quiet", "aria-label": `${S.history.remove}: ${entry.name}` }));
  }

  async function refresh() {
    try {
      const entries = (await within("readonly", (store) => store.getAll())).reverse();
      list.replaceChildren(...(entries.length ? entries.map(row) : [h("li", { class: "soft" }, S.history.empty)]));
      first.hidden = entries.length === 0;
    } catch {
      list.replaceChildren(h("li", { class: "soft" }, S.history.unavailable));
      first.hidden = keep.disabled = true;
    }
  }

  async function wipe() {
    await within("readwrite", (store) => store.clear());
    sure.hidden = true;
    await refresh();
  }

  await refresh();
}
