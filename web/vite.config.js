// One script and one style, without hashes in their names: the package carries them (`make web`).
import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../src/gradtrace/report/bundle",
    emptyOutDir: true,
    target: "es2022",
    cssCodeSplit: false,
    modulePreload: false,
    lib: { entry: "src/main.ts", formats: ["iife"], name: "gradtraceReport", fileName: () => "report.js", cssFileName: "report" },
  },
});
