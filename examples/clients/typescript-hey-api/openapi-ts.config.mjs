export default {
  input: "openapi.json",
  output: { path: "generated", module: { extension: ".js" } },
  logs: { file: false },
  plugins: ["@hey-api/client-fetch", "@hey-api/typescript", "@hey-api/sdk"],
};
