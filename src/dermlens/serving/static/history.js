// The history: in this browser's IndexedDB and nowhere else. Without it the page works all the same.
const NAME = "dermlens";
const STORE = "readings";
const KEEP = "dermlens-keep-history";
const LARGEST = 60;

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, work) {
  const database = await open();
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

export function kept() {
  try {
    return localStorage.getItem(KEEP) !== "no";
  } catch {
    return false;
  }
}

export function setKept(yes) {
  localStorage.setItem(KEEP, yes ? "yes" : "no");
}

export async function remember(item) {
  if (!kept() || item.kept) return;
  try {
    item.kept = await within("readwrite", (store) =>
      store.add({ name: item.name, at: item.at, blob: item.sent, answer: item.answer }));
    const all = await within("readonly", (store) => store.getAllKeys());
    for (const key of all.slice(0, Math.max(0, all.length - LARGEST))) await forget(key);
  } catch {
    // no space, or storage is switched off: the reading itself is not touched
  }
}

export const recall = async () => (await within("readonly", (store) => store.getAll())).reverse();
export const forget = (id) => within("readwrite", (store) => store.delete(id));
export const wipe = () => within("readwrite", (store) => store.clear());
