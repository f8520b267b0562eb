// Elements without innerHTML: a file name or a text of the server can never become markup.
import { S } from "./words.js";

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node && key !== "list" && key !== "form") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(4).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const button = (text, onclick, props = {}) => h("button", { type: "button", onclick, ...props }, text);
export const reticle = () => h("img", { class: "reticle", src: "/static/reticle.svg", alt: "" });
export const dot = () => h("b", { class: "dot", "aria-hidden": "true" });
export const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");
export const when = (at) => new Date(at).toLocaleString(S.lang, { dateStyle: "medium", timeStyle: "short" });

export function percent(share, digits = 0) {
  if (share === null || share === undefined) return "";
  const value = share * 100;
  const least = 10 ** -digits; // what is not none is never shown as none, nor as all
  if (value > 0 && value < least) return `<${least} %`;
  if (value > 100 - least && value < 100) return `>${(100 - least).toFixed(digits)} %`;
  return `${value.toFixed(digits)} %`;
}

export function say(text) {
  document.getElementById("live").textContent = text; // for screen readers
}

export function dialog(heading, ...content) {
  // A modal that is removed when it closes. The browser keeps the focus inside and gives it back.
  const id = `dialog-${Math.random().toString(36).slice(2)}`;
  const close = button("✕", () => node.close(), { class: "quiet close", "aria-label": S.close });
  const node = h("dialog", { "aria-labelledby": id }, h("header", {}, h("h2", { id }, heading), close), content);
  node.addEventListener("close", () => node.remove());
  node.addEventListener("click", (event) => event.target === node && node.close());
  document.getElementById("dialogs").append(node);
  node.showModal();
  return node;
}
