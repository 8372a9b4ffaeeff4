/** Pictures that wait to be sent: chosen, dropped or pasted, as data URLs, in a tray. */

import { button, make } from "./dom.js";

export class Tray {
  /** `list`: the element they are shown in. `changed`: called when there are more or fewer. */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.pictures = []; // {url, name}
  }

  /** Adds files; gives the names of those that are no pictures. */
  async add(files) {
    const [good, bad] = [[], []];
    for (const file of files) (file.type.startsWith("image/") ? good : bad).push(file);
    const urls = await Promise.all(good.map(dataUrl));
    this.put([...this.pictures, ...good.map((file, i) => ({ url: urls[i], name: file.name }))]);
    return bad.map((file) => file.name);
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

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
