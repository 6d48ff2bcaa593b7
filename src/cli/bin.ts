import { main } from './main.js';
import { start } from './start.js';

void start(main);
