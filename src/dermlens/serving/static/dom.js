// Elements without innerHTML: what a file is called, or what the server says, can never become markup.
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

export function say(text) {
  document.getElementById("live").textContent = text;
}

export function percent(share) {
  if (share === null || share === undefined) return "";
  const value = share * 100;
  if (value > 0 && value < 1) return "<1 %";
  if (value > 99 && value < 100) return ">99 %";
  return `${value.toFixed(0)} %`;
}

export const when = (at, lang) => new Date(at).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });

export const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");

const SVG = "http://www.w3.org/2000/svg";

export function reticle() {
  // The graduated ring of an eyepiece: sixty ticks, ten of them long.
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 200 200");
  svg.setAttribute("class", "reticle");
  svg.setAttribute("aria-hidden", "true");
  for (const [radius, width, dash] of [[93, 3, "0.35 5.65"], [91.5, 6, "0.5 29.5"], [86, 0.5, ""]]) {
    const ring = document.createElementNS(SVG, "circle");
    for (const [name, value] of Object.entries({ cx: 100, cy: 100, r: radius, fill: "none", pathLength: 360 })) {
      ring.setAttribute(name, value);
    }
    ring.setAttribute("stroke-width", width);
    if (dash) {
      const [mark, gap] = dash.split(" ").map(Number);
      ring.setAttribute("stroke-dasharray", dash);
      ring.setAttribute("stroke-dashoffset", -gap / 2); // the seam of the ring lies in a gap, not in a mark
      ring.setAttribute("transform", `rotate(${-(mark + gap) / 2} 100 100)`);
    }
    svg.append(ring);
  }
  return svg;
}

export function dialog(heading, ...content) {
  // A modal that is removed when it is closed; the browser keeps the focus inside and gives it back.
  const id = `dialog-${Math.random().toString(36).slice(2)}`;
  const close = h("button", { type: "button", class: "quiet close", "aria-label": closeLabel, onclick: () => node.close() }, "✕");
  const node = h("dialog", { "aria-labelledby": id }, h("header", {}, h("h2", { id }, heading), close), content);
  node.addEventListener("close", () => node.remove());
  node.addEventListener("click", (event) => event.target === node && node.close());
  document.getElementById("dialogs").append(node);
  node.showModal();
  return node;
}

let closeLabel = "";
export const setCloseLabel = (text) => (closeLabel = text);
