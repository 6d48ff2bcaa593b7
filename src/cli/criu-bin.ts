import { helper } from './criu-helper.js';
import { start } from './start.js';

void start(helper);
