// Frames of a video element: as JPEG data URLs, and whether one differs from the last one that did.

import { h } from "./dom.js";

const THUMBNAIL = 32; // pixels a side
const CHANGED = 6; // levels of 255 in the mean: above the noise of cameras, below a hand that moves; as `gangpao watch` has it

/** What a video shows now, with at most side x side pixels in all; null while there is no picture. */
export function frameOf(video, side) {
  if (!video.videoWidth) return null;
  const scale = Math.min(1, side / Math.sqrt(video.videoWidth * video.videoHeight));
  return drawn(video, Math.max(1, Math.floor(video.videoWidth * scale)), Math.max(1, Math.floor(video.videoHeight * scale))).toDataURL("image/jpeg", 0.9);
}

/** Whether a video shows something new. What is compared with is the last frame that was new, so a slow drift counts, too. */
export class Changes {
  /** Whether the frame that is shown now differs; the first one does. */
  seen(video) {
    const pixels = drawn(video, THUMBNAIL, THUMBNAIL).getContext("2d").getImageData(0, 0, THUMBNAIL, THUMBNAIL).data;
    const now = Float32Array.from({ length: THUMBNAIL * THUMBNAIL }, (_, i) => 0.299 * pixels[4 * i] + 0.587 * pixels[4 * i + 1] + 0.114 * pixels[4 * i + 2]);
    const difference = this.last ? now.reduce((sum, value, i) => sum + Math.abs(value - this.last[i]), 0) / now.length : Infinity;
    if (difference < CHANGED) return false;
    this.last = now;
    return true;
  }
}

function drawn(video, width, height) {
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(video, 0, 0, width, height);
  return canvas;
}
