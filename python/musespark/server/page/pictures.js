/** Pictures that wait to be sent: chosen, dropped or pasted, as data URLs, in a tray. */

import { button, make } from "./dom.js";

// Larger ones are made smaller before they are sent, again with each question: no model reads more.
const MOST_PIXELS = 1 << 21;
const MOST_BYTES = 1 << 20;

export class Tray {
  /** `list`: the element they are shown in. `changed`: called when there are more or fewer. */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.pictures = []; // {url, name}
    this.reading = 0; // calls of add() that are on their way
  }

  /** Adds files; gives the names of those that are no pictures, and of those that do not open. */
  async add(files) {
    const [good, others] = [[], []];
    for (const file of files) (file.type.startsWith("image/") ? good : others).push(file);
    this.reading += 1;
    const urls = await Promise.all(good.map((file) => pictureUrl(file).catch(() => null)));
    const all = good.map((file, i) => ({ url: urls[i], name: file.name }));
    this.put([...this.pictures, ...all.filter((one) => one.url !== null)]);
    this.reading -= 1;
    const broken = all.filter((one) => one.url === null);
    return { others: others.map((one) => one.name), broken: broken.map((one) => one.name) };
  }

  put(pictures) {
    this.pictures = pictures;
    this.list.hidden = !pictures.length;
    this.list.replaceChildren(...pictures.map((one) => this.#item(one)));
    this.changed();
  }

  /** What is in it; it is empty then. */
  take() {
    const taken = this.pictures;
    this.put([]);
    return taken;
  }

  #item(picture) {
    const without = () => this.put(this.pictures.filter((one) => one !== picture));
    const label = `Remove ${picture.name}`;
    return make("li", {},
      make("img", { src: picture.url, alt: picture.name }),
      button("×", without, { class: "remove", title: label, "aria-label": label }));
  }
}

/** The pictures among what is pasted or dropped. */
export function picturesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

/** Questions with the last `most` of all their pictures. */
export function lastPictures(questions, most) {
  let left = most;
  return questions.toReversed().map((one) => {
    const pictures = one.pictures.slice(Math.max(0, one.pictures.length - left));
    left -= pictures.length;
    return { ...one, pictures };
  }).toReversed();
}

/**
 * A picture as a data URL, at most MOST_PIXELS large where it takes more than MOST_BYTES; rejects one
 * that does not open. The server reads no kind that browsers do not.
 */
async function pictureUrl(file) {
  const bitmap = await createImageBitmap(file);
  if (file.size <= MOST_BYTES) {
    bitmap.close();
    return dataUrl(file);
  }
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const side = (length) => Math.max(1, Math.round(length * scale));
  const canvas = make("canvas", { width: side(bitmap.width), height: side(bitmap.height) });
  const drawn = canvas.getContext("2d");
  drawn.imageSmoothingQuality = "high";
  drawn.fillStyle = "white"; // behind what is transparent: JPEG has no such thing
  drawn.fillRect(0, 0, canvas.width, canvas.height);
  drawn.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.92);
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
