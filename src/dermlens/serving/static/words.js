// The words of the page, in the first language that the browser asks for and that has a file words.LANGUAGE.json.
// A placeholder like {n} stands for a value: fill(S.tooMany, { n: 24 }).
const languages = ["en"];

const language = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => languages.includes(tag)) ?? languages[0];

export const S = await (await fetch(new URL(`words.${language}.json`, import.meta.url))).json();

export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

export function fillStatic() {
  document.documentElement.lang = S.lang;
  const find = (path) => path.split(".").reduce((value, key) => value[key], S);
  for (const node of document.querySelectorAll("[data-s]")) node.textContent = find(node.dataset.s);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", find(node.dataset.label));
}
