import { plugin } from "./plugin.js";
import { serve } from "./toru-plugin/index.js";

serve(plugin);
