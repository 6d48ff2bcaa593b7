/** One command in a bundle of its own, and the whole of bpfimg for command lines that are not plain. */
import { quickly } from './quick.js';
import { outcome, ownArguments, start } from './start.js';

const command = quickly(ownArguments());
if (command === undefined) void import('./bin.js');
else void start((argv, io) => outcome(command, argv, io));
