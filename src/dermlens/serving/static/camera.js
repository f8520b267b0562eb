// Taking a picture, with a ring that shows where the lesion belongs.
import { button, dialog, h, reticle } from "./dom.js";
import { encoded } from "./frame.js";
import { S } from "./strings.js";

function complaint(error) {
  if (!navigator.mediaDevices) return S.camera.insecure;
  return error?.name === "NotAllowedError" ? S.camera.denied : S.camera.missing;
}

export async function openCamera(taken) {
  const video = h("video", { muted: true, playsInline: true, autoplay: true, "aria-hidden": "true" });
  const problem = h("p", { class: "complaint", role: "alert", hidden: true });
  const shoot = button(S.camera.shoot, () => take(), { class: "primary", disabled: true });
  const other = button(S.camera.other, () => start(next()), { hidden: true });
  const finder = h("div", { class: "finder" }, video, reticle());
  const help = h("p", { class: "soft" }, S.camera.guide);
  const node = dialog(S.camera.heading, help, finder, problem, h("div", { class: "row" }, shoot, other));
  node.classList.add("camera");
  let stream = null;
  let cameras = [];
  let current = -1;

  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  node.addEventListener("close", stop);
  const next = () => {
    current = (current + 1) % cameras.length;
    return { deviceId: { exact: cameras[current].deviceId } };
  };

  async function start(which) {
    stop();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, width: { ideal: 1920 } }, audio: false });
      video.srcObject = stream;
      await video.play();
      cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
      other.hidden = cameras.length < 2;
      shoot.disabled = false;
      shoot.focus();
    } catch (error) {
      if (!node.isConnected) return;
      problem.textContent = complaint(error);
      problem.hidden = false;
      finder.hidden = true;
    }
    if (!node.isConnected) stop();
  }

  function take() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = encoded(canvas, "image/jpeg");
    node.close();
    taken(blob);
  }

  await start({ facingMode: "environment" });
}
