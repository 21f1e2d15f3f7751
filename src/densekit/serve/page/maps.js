// Draws a picture, the square of it that the network sees, and a class' map over that square.

const FOR = [249, 115, 22], AGAINST = [37, 99, 235]; // orange, blue
const FINE = 128; // pixels of a map's side once it is smoothed
const DIMMED = 0.45; // how much is left of what the network does not see

// The square in the picture's own pixels; it may reach beyond the picture, where zeros are.
export function seenSquare(width, height, preprocessing) {
  const { resize, crop } = preprocessing;
  const scale = resize === null ? 1 : resize / Math.min(width, height);
  const side = crop / scale;
  return { x: (width - side) / 2, y: (height - side) / 2, side };
}

// {height, width, scale, data: signed bytes in base64} -> rows of numbers from -1 to 1.
export function readMap(map) {
  const bytes = Int8Array.from(atob(map.data), (letter) => letter.charCodeAt(0));
  return Array.from({ length: map.height }, (_, y) =>
    Array.from({ length: map.width }, (_, x) => bytes[y * map.width + x] / 127));
}

// Fills the canvas: `picture` {image, width, height} in its middle, or a blank square.
export function draw(canvas, picture, preprocessing, values, strength, ground) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const pen = canvas.getContext("2d");
  const { width, height } = picture || { width: preprocessing.crop, height: preprocessing.crop };
  const seen = seenSquare(width, height, preprocessing);
  const fit = Math.min(canvas.width / width, canvas.height / height);
  const left = (canvas.width - width * fit) / 2, top = (canvas.height - height * fit) / 2;
  pen.fillStyle = ground;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) {
    pen.imageSmoothingEnabled = fit < 4; // a digit of 28 pixels is shown as it is
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture.image, left, top, width * fit, height * fit);
  }
  const square = [left + seen.x * fit, top + seen.y * fit, seen.side * fit];
  dimOutside(pen, [left, top, width * fit, height * fit], square, ground);
  if (values && strength > 0) {
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width * fit, height * fit);
    pen.clip();
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.globalAlpha = strength;
    pen.drawImage(colours(values), square[0], square[1], square[2], square[2]);
    pen.restore();
  }
}

function dimOutside(pen, [left, top, width, height], [x, y, side], ground) {
  if (x <= left + 1 && y <= top + 1) return;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, width, height);
  pen.rect(x, y, side, side);
  pen.clip("evenodd");
  pen.globalAlpha = 1 - DIMMED;
  pen.fillStyle = ground;
  pen.fillRect(left, top, width, height);
  pen.restore();
}

function colours(values) {
  const fine = smooth(values);
  const small = document.createElement("canvas");
  small.width = small.height = FINE;
  const image = new ImageData(FINE, FINE);
  fine.flat().forEach((value, i) => {
    const shade = Math.min(1, Math.abs(value));
    image.data.set([...(value > 0 ? FOR : AGAINST), 255 * shade ** 1.2], 4 * i);
  });
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

// By cubic interpolation, first along rows and then along columns.
function smooth(rows) {
  const turned = transpose(rows.map(stretch));
  return transpose(turned.map(stretch));
}

const transpose = (rows) => rows[0].map((_, x) => rows.map((row) => row[x]));

function stretch(line) {
  const at = (i) => line[Math.max(0, Math.min(line.length - 1, i))];
  return Array.from({ length: FINE }, (_, i) => {
    const place = ((i + 0.5) / FINE) * line.length - 0.5;
    const first = Math.floor(place), t = place - first;
    const [a, b, c, d] = [at(first - 1), at(first), at(first + 1), at(first + 2)];
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  });
}

// In words, for those who do not see it: where the map is strongest.
export function strongestPart(values) {
  const flat = values.flat(), best = flat.indexOf(Math.max(...flat));
  const y = Math.floor(best / values[0].length), x = best % values[0].length;
  const third = (i, n, names) => names[Math.min(2, Math.floor((3 * (i + 0.5)) / n))];
  const row = third(y, values.length, ["top", "middle", "bottom"]);
  const column = third(x, values[0].length, ["left", "centre", "right"]);
  return row === "middle" && column === "centre" ? "the centre" : `the ${row} ${column}`;
}
