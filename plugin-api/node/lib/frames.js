/**
 * Frames: where one message ends and the next begins.
 *
 * No I/O and no JSON: bytes in, the bytes of frames out. Source: PROTOCOL.md, "Framing".
 */

export const FRAME_BYTES_MAX_DEFAULT = 1_048_576;
export const FRAME_BYTES_MAX_LIMIT = 16 * 1024 * 1024;

const BRACE = 0x7b;
const NEWLINE = 0x0a;
const RETURN = 0x0d;

/** The peer broke the framing: close the connection. `word` is fixed, for programs. */
export class FrameError extends Error {
  constructor(word, message) {
    super(message);
    this.word = word;
  }
}

/**
 * Cuts a stream of bytes into frames. `framing` null lets the first byte decide: `{` means lines.
 *
 * Errors are sticky: `feed` returns the frames before the fault, `error` says what it was, and nothing more comes.
 */
export class Decoder {
  /** The start of an unfinished frame, its prefix included: `#kept` bytes of `#buffer`. */
  #buffer = Buffer.alloc(0);
  #kept = 0;

  constructor(framing = null, frameBytesMax = FRAME_BYTES_MAX_DEFAULT) {
    this.framing = framing;
    this.frameBytesMax = frameBytesMax;
    this.error = null;
  }

  get midFrame() {
    return this.error === null && this.#kept > 0;
  }

  /** The frames that are complete with `data`, without prefix or newline; they may share its memory. */
  feed(data) {
    if (this.error !== null || data.length === 0) return [];
    this.framing ??= data[0] === BRACE ? "lines" : "length";
    return this.framing === "length" ? this.#feedLength(data) : this.#feedLines(data);
  }

  #keep(data) {
    const length = this.#kept + data.length;
    if (length > this.#buffer.length) {
      // Doubled, so that a frame that drips in is not copied for each drop, and nothing is made for a mere promise.
      const larger = Buffer.allocUnsafe(Math.max(length, 2 * this.#buffer.length, 256));
      this.#buffer.copy(larger, 0, 0, this.#kept);
      this.#buffer = larger;
    }
    data.copy(this.#buffer, this.#kept);
    this.#kept = length;
  }

  #take() {
    const taken = this.#buffer.subarray(0, this.#kept);
    this.#buffer = Buffer.alloc(0);
    this.#kept = 0;
    return taken;
  }

  #feedLength(data) {
    if (this.#kept > 0) {
      this.#keep(data);
      if (this.#kept < 4) return [];
      const length = this.#buffer.readUInt32BE(0);
      if (length > 0 && length <= this.frameBytesMax && this.#kept < 4 + length) return [];
      data = this.#take();
    }
    const frames = [];
    let at = 0;
    while (data.length - at >= 4) {
      const length = data.readUInt32BE(at);
      if (length > this.frameBytesMax) {
        this.error = new FrameError("too_long", `a frame of ${length} bytes; the limit is ${this.frameBytesMax}`);
        return frames;
      }
      if (length === 0) {
        this.error = new FrameError("zero_length", "a frame of 0 bytes");
        return frames;
      }
      if (at + 4 + length > data.length) break;
      frames.push(data.subarray(at + 4, at + 4 + length));
      at += 4 + length;
    }
    if (at < data.length) this.#keep(data.subarray(at));
    return frames;
  }

  #feedLines(data) {
    const frames = [];
    let at = 0;
    for (;;) {
      const newline = data.indexOf(NEWLINE, at);
      if (newline < 0) break;
      let line = data.subarray(at, newline);
      if (this.#kept > 0) {
        this.#keep(line);
        line = this.#take();
      }
      at = newline + 1;
      if (line.length > this.frameBytesMax) {
        this.#failLine();
        return frames;
      }
      if (line[line.length - 1] === RETURN) line = line.subarray(0, -1);
      let first = 0;
      while (first < line.length && (line[first] === 0x20 || line[first] === 0x09 || line[first] === RETURN)) first++;
      if (first === line.length) {
        this.error = new FrameError("zero_length", "an empty line");
        return frames;
      }
      if (line[first] !== BRACE) {
        this.error = new FrameError("not_object", "a line that does not start with `{`");
        return frames;
      }
      frames.push(line);
    }
    if (at < data.length) this.#keep(data.subarray(at));
    if (this.#kept > this.frameBytesMax) this.#failLine();
    return frames;
  }

  #failLine() {
    this.error = new FrameError("too_long", `a line of more than ${this.frameBytesMax} bytes`);
  }
}

/** The frames around some JSON texts, as the bytes of one write. */
export function encodeFrames(framing, texts) {
  if (framing === "lines") return Buffer.from(texts.join("\n") + "\n");
  const lengths = texts.map((text) => Buffer.byteLength(text));
  const bytes = Buffer.allocUnsafe(lengths.reduce((sum, length) => sum + 4 + length, 0));
  let at = 0;
  texts.forEach((text, index) => {
    at = bytes.writeUInt32BE(lengths[index], at);
    at += bytes.write(text, at, "utf8");
  });
  return bytes;
}
