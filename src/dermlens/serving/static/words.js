// The language of the page: the first one that the browser asks for and that is here.
import en from "./words.en.js";

const languages = { en };

export const S = languages[navigator.languages.map((l) => l.slice(0, 2)).find((l) => l in languages)] ?? en;

export function fillStatic() {
  document.documentElement.lang = S.lang;
  const find = (path) => path.split(".").reduce((value, key) => value[key], S);
  for (const node of document.querySelectorAll("[data-s]")) node.textContent = find(node.dataset.s);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", find(node.dataset.label));
}
