/** What a user's plugin is given: bpfimg's own ways to read and to fill maps. */
import * as readers from './capture/read.js';
import { FULL } from './maptype.js';
import * as fillers from './replay/fill.js';

export const toolkit = { ...readers, ...fillers, FULL };
export type Toolkit = typeof toolkit;
