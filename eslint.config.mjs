import { readdirSync } from 'node:fs'
import js from '@eslint/js'
import { defineConfig } from 'eslint/config'
import { createNodeResolver, importX } from 'eslint-plugin-import-x'
import tseslint from 'typescript-eslint'

// What the scripts use of Node without importing it.
const nodeGlobals = Object.fromEntries(
  [
    ...[
      'AbortController',
      'AbortSignal',
      'Buffer',
      'TextDecoder',
      'TextEncoder',
      'URL',
      'console',
      'fetch',
      'module',
    ],
    ...['performance', 'process', 'require', 'structuredClone'],
    ...['clearInterval', 'clearTimeout', 'setImmediate', 'setInterval', 'setTimeout'],
  ].map((name) => [name, 'readonly']),
)

const unused = ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_', ignoreRestSiblings: true }]

// The floors of src, the highest first; the files at its root lie below all of them, but for index.ts, the roof. Circles
// within a floor are dpdm's business (npm run lint): the rules for ESLint do not follow imports of types.
const floors = [
  ...[
    'cli',
    'sdk',
    'reporting',
    'planning',
    'pruning',
    'training',
    'evaluation',
    'generation',
    'models',
    'text',
    'hub',
  ],
  ...['files', 'native'],
]
const unplaced = readdirSync(new URL('src', import.meta.url), { withFileTypes: true }).filter(
  (entry) => entry.isDirectory() && !floors.includes(entry.name),
)
if (unplaced.length > 0)
  throw new Error(`src/${unplaced[0].name} is on no floor: add it to eslint.config.mjs`)
const higherThan = (floor) => [
  ...floors.slice(0, floors.indexOf(floor)).map((name) => `./src/${name}`),
  './src/index.ts',
]

// Layout is prettier's business: no rule here is about it.
export default defineConfig(
  {
    ignores: ['build/', 'dist/', 'prebuilds/', 'coverage/', 'models/', 'docs/', 'native/', '**/.venv/'],
  },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unused-vars': unused,
      '@typescript-eslint/consistent-type-imports': 'error',
      // Numbers in messages are the rule here: shapes, counts, percentages.
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      // noUncheckedIndexedAccess makes every typed-array read `number | undefined`; the loops know their bounds.
      '@typescript-eslint/no-non-null-assertion': 'off',
      // A callback that returns nothing may be one expression.
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      // `while (true)` is fine.
      '@typescript-eslint/no-unnecessary-condition': ['error', { allowConstantLoopConditions: true }],
    },
  },
  {
    files: ['src/**/*.ts'],
    plugins: { 'import-x': importX },
    // As TypeScript has it: what is imported as .js is a .ts file here.
    settings: {
      'import-x/resolver-next': [createNodeResolver({ extensionAlias: { '.js': ['.ts', '.js'] } })],
    },
    rules: {
      'import-x/no-restricted-paths': [
        'error',
        {
          zones: [
            ...floors.map((floor) => ({
              target: `./src/${floor}`,
              from: higherThan(floor),
              message: 'A floor of src imports only from lower ones.',
            })),
            {
              target: './src/!(index).ts',
              from: floors.map((name) => `./src/${name}`),
              message: 'The files at the root of src lie below every floor.',
            },
          ],
        },
      ],
    },
  },
  {
    files: ['test/**/*.ts'],
    rules: {
      // JSON of files and bad arguments given on purpose.
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      '@typescript-eslint/no-empty-function': 'off',
      '@typescript-eslint/no-unnecessary-condition': 'off',
      '@typescript-eslint/no-unnecessary-type-assertion': 'off',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/unbound-method': 'off',
    },
  },
  {
    files: ['**/*.{js,mjs,cjs}'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: { globals: nodeGlobals },
    rules: { 'no-unused-vars': unused },
  },
  {
    // What runs in a page.
    files: ['src/reporting/page-script.js', 'test/browser/*.mjs'],
    languageOptions: {
      globals: Object.fromEntries(
        ['document', 'getComputedStyle', 'uPlot', 'atob', 'matchMedia', 'addEventListener'].map((name) => [
          name,
          'readonly',
        ]),
      ),
    },
  },
  {
    files: ['**/*.cjs'],
    languageOptions: { sourceType: 'commonjs' },
  },
)
