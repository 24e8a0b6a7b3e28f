// One file with the types and a function for each operation; `send.ts` is ours.
export default {
  rollcall: {
    input: "openapi.json",
    output: {
      target: "generated/rollcall.ts",
      client: "fetch",
      mode: "single",
      override: { mutator: { path: "./send.ts", name: "send", extension: ".js" } },
    },
  },
};
