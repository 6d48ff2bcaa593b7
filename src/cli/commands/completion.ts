import type { Command, Given } from '../command.js';
import { SCRIPTS } from '../completion.gen.js';
import type { Io } from '../io.js';
import { written } from '../written.js';

const takes = {
  words: {
    shell: {
      type: 'string',
      choices: ['bash', 'zsh', 'fish'],
      demandOption: true,
      describe: 'the shell that is to complete command lines',
    },
  },
} as const;

export const command: Command = {
  name: 'completion',
  summary: 'print a script with which a shell completes command lines',
  ...takes,
  examples: [
    ['completion bash > /etc/bash_completion.d/bpfimg', 'for all users of bash'],
    ['completion zsh > /usr/local/share/zsh/site-functions/_bpfimg', 'for all users of zsh'],
    ['completion fish > ~/.config/fish/completions/bpfimg.fish', 'for you in fish'],
  ],
  epilogue: 'In ~/.bashrc or ~/.zshrc (there after compinit): source <(bpfimg completion bash), or zsh.',
  run,
};

async function run({ shell }: Given<typeof takes>, io: Io): Promise<void> {
  await written(undefined, io, async (out) => {
    out.text(SCRIPTS[shell]);
  });
}
