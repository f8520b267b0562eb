// Talks to the server: patient when it is busy, and clear when it refuses.
import { S } from "./strings.js";

const RETRIES = 6;
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail ?? S.offline);
    this.code = problem.code ?? "offline";
    this.remedy = problem.remedy ?? "";
  }
}

let askForToken = async () => null;
export const onTokenNeeded = (ask) => (askForToken = ask);

const TOKEN = "dermlens-token";

function headers(accept) {
  const token = sessionStorage.getItem(TOKEN);
  return { Accept: accept, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function call(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers("application/json"), cache: "no-store" });
    } catch {
      throw new Refused({});
    }
    if (response.ok) return response.json();
    if (response.status === 401) {
      const token = await askForToken(attempt > 0);
      if (token) {
        sessionStorage.setItem(TOKEN, token);
        continue;
      }
    }
    if (response.status === 429 && attempt < RETRIES) {
      await wait((Number(response.headers.get("Retry-After")) || 1) + Math.random() / 2); // not all at once again
      continue;
    }
    throw new Refused(await response.json().catch(() => ({})));
  }
}

function form(blob) {
  const data = new FormData();
  data.append("image", blob, "image"); // the file's own name stays here
  return data;
}

export const getModel = () => call("/api/v1/model");
export const predict = (blob) => call("/api/v1/predictions", { method: "POST", body: form(blob) });
export const explain = (blob, code) =>
  call(`/api/v1/explanations?code=${encodeURIComponent(code)}`, { method: "POST", body: form(blob) });
