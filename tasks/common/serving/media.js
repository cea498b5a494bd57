// Media of the page: files that are chosen, dropped or pasted, and what a camera or a microphone records.

function setMedia(name, value, chosen = false) {
  media[name] = value;
  if (!chosen) $(`field-${name}`).value = "";  // which would show the name of an earlier file
  const place = $(`preview-${name}`), kind = value ? (value.type || "").split("/")[0] : "";
  for (const old of place.children) URL.revokeObjectURL(old.src);
  place.replaceChildren();
  if (!value) return;
  const src = URL.createObjectURL(value);
  if (kind === "image") place.append(element("img", { src, alt: `the ${name}` }));
  else if (kind === "audio") place.append(element("audio", { src, controls: true }));
  else if (kind === "video") place.append(element("video", { src, controls: true, muted: true }));
  else place.append(element("small", { textContent: value.name || `${value.size} bytes` }));
}

function mediaField(field) {
  const kind = field.media.split("/")[0], id = `field-${field.name}`;
  const accept = field.media + (kind === "video" ? ",image/gif" : "");
  const file = element("input", { type: "file", accept, id });
  const box = element("div", { className: "drop" }, file);
  file.onchange = () => file.files[0] && setMedia(field.name, file.files[0], true);
  box.ondragover = (event) => { event.preventDefault(); box.classList.add("over"); };
  box.ondragleave = () => box.classList.remove("over");
  box.ondrop = (event) => {
    event.preventDefault();
    box.classList.remove("over");
    if (event.dataTransfer.files[0]) setMedia(field.name, event.dataTransfer.files[0]);
  };
  if (navigator.mediaDevices?.getUserMedia) box.append(...deviceButton(field, kind));
  box.append(element("div", { id: `preview-${field.name}` }));
  return box;
}

function deviceButton(field, kind) {
  const [idle, busy] = { image: ["Camera", "Take the picture"], audio: ["Microphone", "Stop"], video: ["Camera", "Stop"] }[kind];
  const live = element("video", { autoplay: true, muted: true, playsInline: true, hidden: true });
  const button = element("button", { type: "button", textContent: idle, id: `device-${field.name}` });
  const ended = () => { button.textContent = idle; live.hidden = true; };
  button.onclick = async () => {
    if (button.textContent === busy) return stopDevice(true);
    try {
      await useDevice(kind, live, (value) => setMedia(field.name, value), ended);
      button.textContent = busy;
      live.hidden = kind === "audio";
    } catch (error) {
      show(`${idle.toLowerCase()}: ${error.message}`, "error");
    }
  };
  return [element("div", { className: "row" }, button), live];
}

async function useDevice(kind, live, take, ended) {
  stopDevice(false);
  const stream = await navigator.mediaDevices.getUserMedia(kind === "audio" ? { audio: true } : { video: true });
  const chunks = [], recorder = kind === "image" ? null : new MediaRecorder(stream);
  if (kind !== "audio") live.srcObject = stream;
  if (recorder) recorder.ondataavailable = (event) => chunks.push(event.data);
  recorder?.start();
  stopDevice = async (keep) => {
    stopDevice = () => {};
    let value = null;
    if (keep && kind === "image") {
      const canvas = element("canvas", { width: live.videoWidth, height: live.videoHeight });
      canvas.getContext("2d").drawImage(live, 0, 0);
      value = await new Promise((done) => canvas.toBlob(done, "image/png"));
    } else if (keep) {
      await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
      value = new Blob(chunks, { type: recorder.mimeType });
      if (kind === "audio") value = await wavOf(value);
    }
    stream.getTracks().forEach((track) => track.stop());
    live.srcObject = null;
    ended();
    if (value) take(value);
  };
}

async function wavOf(blob) {  // the server reads WAV, whatever the browser records
  const sound = await new AudioContext().decodeAudioData(await blob.arrayBuffer());
  const samples = sound.getChannelData(0), view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  const long = (at, value) => view.setUint32(at, value, true), short = (at, value) => view.setUint16(at, value, true);
  word(0, "RIFF"); long(4, 36 + 2 * samples.length); word(8, "WAVEfmt "); long(16, 16); short(20, 1); short(22, 1);
  long(24, sound.sampleRate); long(28, 2 * sound.sampleRate); short(32, 2); short(34, 16);
  word(36, "data"); long(40, 2 * samples.length);
  samples.forEach((value, n) => view.setInt16(44 + 2 * n, 32767 * Math.max(-1, Math.min(1, value)), true));
  return new Blob([view], { type: "audio/wav" });
}
