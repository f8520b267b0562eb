// The page's language: the first one that the browser wants and that is here.
import en from "./strings.en.js";

const languages = { en };

export const S = languages[navigator.languages.map((l) => l.slice(0, 2)).find((l) => l in languages)] ?? en;

export function fillStatic(root = document) {
  root.documentElement.lang = S.lang;
  const find = (path) => path.split(".").reduce((value, key) => value[key], S);
  for (const node of root.querySelectorAll("[data-s]")) node.textContent = find(node.dataset.s);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", find(node.dataset.label));
}
