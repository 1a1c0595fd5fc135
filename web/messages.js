/**
 * Messages in another language: English templates with {placeholders}, each with its translation. What the pack says in
 * Python arrives as English text, and is found again by its template. What matches none stays English.
 */

const JOINTS = [
  [/(?<=[.!?]) /, ""], // sentences
  [/; /, "；"],
  [/: /, "："],
  [/, /, "，"],
  [/ - /, "："], // as the host joins an input and its error
];

/** The messages of one language: {English template: translation}, and the words that values may be, as names of inputs. */
export class Messages {
  constructor(translations = {}, words = {}) {
    this.translations = new Map(Object.entries(translations).filter(([, text]) => text));
    this.words = words;
    this.templates = [...this.translations.keys()]
      .filter((english) => /\{\w+\}/.test(english))
      .sort((a, b) => letters(b) - letters(a)) // the one that says most goes first
      .map((english) => ({ english, ...pattern(english) }));
  }

  /** A text that the browser writes: "{n} steps" with {n: 8}. */
  t(english, values = {}) {
    return filled(this.translations.get(english) ?? english, values);
  }

  /** A text that came from Python, line by line. */
  translated(text) {
    if (!this.translations.size || typeof text !== "string") return text;
    return text.split("\n").map((line) => this.#line(line)).join("\n"); // prettier-ignore
  }

  #line(line) {
    const [, before, text, after] = /^(\s*)(.*?)(\s*)$/s.exec(line);
    const found = this.#whole(text) ?? this.#choice(text) ?? this.#parts(text) ?? this.#whole(text, true);
    return before + (found ?? text) + after;
  }

  /** Names to choose from: "heun or midpoint". */
  #choice(text) {
    if (/^\S+( or \S+)+$/.test(text)) return text.replaceAll(" or ", ` ${this.t("or")} `);
  }

  /** A text that is one message, whose values may hold several sentences or not. */
  #whole(text, sentences = false) {
    if (this.translations.has(text)) return this.translations.get(text);
    for (const { english, regex, names } of this.templates) {
      const found = regex.exec(text);
      if (!found || (!sentences && found.slice(1).some((value) => JOINTS[0][0].test(value)))) continue;
      const values = names.map((name, i) => [name, this.words[found[i + 1]] ?? this.#line(found[i + 1])]);
      return filled(this.translations.get(english), Object.fromEntries(values));
    }
  }

  /** A text of several messages, if any of them is known. */
  #parts(text) {
    for (const [joint, theirs] of JOINTS) {
      const parts = text.split(joint);
      const known = parts.length > 1 ? parts.map((part) => this.words[part] ?? this.#line(part)) : parts;
      if (known.some((part, i) => part !== parts[i])) return known.join(theirs);
    }
  }
}

function filled(template, values) {
  return template.replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}

function letters(english) {
  return english.replace(/\{\w+\}/g, "").length;
}

/** What a template matches, and the names of its placeholders in order. */
function pattern(english) {
  const [names, parts] = [[], english.split(/\{(\w+)\}/)];
  const source = parts.map((part, i) => {
    if (i % 2 === 0) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    names.push(part);
    return `('[^']*'|.*?)`; // what is quoted may hold anything
  });
  return { names, regex: new RegExp(`^${source.join("")}$`, "s") };
}
