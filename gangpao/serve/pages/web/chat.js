// The page at /: the chat with the server's models.

import { ServerBackend } from "./backend-server.js";
import { App } from "./app.js";
import { t } from "./i18n.js";

const app = new App(document.getElementById("app"), (settings) => new ServerBackend(settings), {
  links: () => [[t("watchPage"), "/watch"], [t("phonePage"), "/phone"]],
});
app.start();
