// The server as the engine of the page. An engine has three functions: describe() -> model, read(image, mix) -> answer,
// explain(image, code) -> heat map. All three throw Refused with what is wrong and what to do.
import { dialog, h } from "./dom.js";
import { S } from "./words.js";

const RETRIES = 6;
const TOKEN = "dermlens-token";

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail ?? S.offline);
    this.code = problem.code ?? "offline";
    this.remedy = problem.remedy ?? "";
  }
}

export const server = {
  describe: () => call("/api/v1/model"),
  read: (image, mix) => call("/api/v1/predictions", image, mix), // mix: a name, JSON of shares, or null
  explain: (image, code) => call(`/api/v1/explanations?code=${encodeURIComponent(code)}`, image),
};

async function call(path, image, mix) {
  for (let attempt = 0; ; attempt += 1) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await send(path, { image, mix }, token);
    if (response.ok) return response.json();
    if (response.status === 401) {
      const given = await askToken(Boolean(token));
      if (given) {
        sessionStorage.setItem(TOKEN, given);
        continue;
      }
    }
    if (response.status !== 429 || attempt >= RETRIES) throw new Refused(await response.json().catch(() => ({})));
    const seconds = (Number(response.headers.get("Retry-After")) || 1) + Math.random() / 2; // not all clients at once
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

function send(path, { image, mix }, token) {
  const headers = { Accept: "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const options = { headers, cache: "no-store" };
  if (image) {
    const body = new FormData();
    body.append("image", image, "image"); // the server never sees the name of the file
    if (mix) body.append("case_mix", mix);
    Object.assign(options, { method: "POST", body });
  }
  return fetch(path, options).catch(() => Promise.reject(new Refused({})));
}

function askToken(again) {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
    const form = h("form", {}, h("p", { class: "soft" }, S.token.text),
      again && h("p", { class: "complaint", role: "alert" }, S.token.wrong),
      h("label", { class: "field" }, h("span", {}, S.token.label), input),
      h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, S.token.send)));
    const node = dialog(S.token.heading, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      resolve(input.value.trim());
      node.close();
    });
    node.addEventListener("close", () => resolve(null));
    input.focus();
  });
}
