// node in_validator.js node_modules/gltf-validator a.glb b.glb: the Khronos validator's report of each file, as JSON.
const fs = require("fs");
const [folder, ...files] = process.argv.slice(2);
const validator = require(require("path").resolve(folder));
Promise.all(files.map((file) => validator.validateBytes(new Uint8Array(fs.readFileSync(file)))))
  .then((reports) => console.log(JSON.stringify(reports.map((report) => report.issues))));
